// Everything that the page does begins here.

function themed(choice) {
  const root = document.documentElement;
  if (choice === "auto") root.removeAttribute("data-theme");
  else root.setAttribute("data-theme", choice);
  document.querySelectorAll("[data-theme-choice]").forEach((button) => {
    button.setAttribute("aria-pressed", String(button.dataset.themeChoice === choice));
  });
  redraw();
}

document.documentElement.classList.add("scripted");
memorySection();
layersSection();
networkSection();
frontSection();
gateSection();
drawNext();
addEventListener("beforeprint", () => {
  drawRest();
  tablePrinted(true);
});
addEventListener("afterprint", () => tablePrinted(false));
document.querySelectorAll("[data-theme-choice]").forEach((button) => {
  button.addEventListener("click", () => themed(button.dataset.themeChoice));
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
matchMedia("print").addEventListener("change", () => {
  drawRest();
  redraw();
});
let drawnWidth = document.body.clientWidth;
new ResizeObserver(() => {
  if (document.body.clientWidth === drawnWidth) return;
  drawnWidth = document.body.clientWidth;
  redraw();
  networkChosen();
}).observe(document.body);
