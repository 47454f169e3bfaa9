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
// Each part is a task of its own, so that the page answers while the next one is drawn.
const parts = [memorySection, layersSection, networkSection, frontSection];
function started() {
  const part = parts.shift();
  if (!part) {
    document.documentElement.dataset.drawn = "";
    return;
  }
  part();
  setTimeout(started);
}
started();
document.querySelectorAll("[data-theme-choice]").forEach((button) => {
  button.addEventListener("click", () => themed(button.dataset.themeChoice));
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
matchMedia("print").addEventListener("change", redraw);
let drawnWidth = document.body.clientWidth;
new ResizeObserver(() => {
  if (document.body.clientWidth === drawnWidth) return;
  drawnWidth = document.body.clientWidth;
  redraw();
  networkChosen();
}).observe(document.body);
