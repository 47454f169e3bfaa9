// Memory over the step: one panel for each chosen run, on one scale, the phases of both in line.

const PHASE_LEAST = 0.07;
const COLUMNS = 5000;
const MARGIN = { left: 70, right: 14, top: 22, bottom: 8 };
const chosen = [...(record.chosen ?? [])];
const panels = [];
let axis = null;

// Where each phase of the step begins on the common axis, from 0 to 1: as wide as the run that spends most of its
// moments there, and no narrower than its name.
function commonAxis() {
  const shares = new Map();
  for (const place of chosen) {
    for (const [phase, moments] of runs[place].phases) {
      shares.set(
        phase,
        Math.max(shares.get(phase) ?? (phase === "loss" ? 0.01 : PHASE_LEAST), moments / runs[place].count),
      );
    }
  }
  const order = ["forward", "loss", "backward", "optimizer"].filter((phase) => shares.has(phase));
  const whole = order.reduce((sum, phase) => sum + shares.get(phase), 0);
  let start = 0;
  return new Map(
    order.map((phase) => {
      const width = shares.get(phase) / whole;
      start += width;
      return [phase, { start: start - width, width }];
    }),
  );
}

// Where each moment of a run begins on the common axis, and where the last one ends.
function edges(run) {
  const found = [];
  let end = 0;
  for (const [phase, moments] of run.phases) {
    const { start, width } = axis.get(phase);
    for (let moment = 0; moment < moments; moment++) found.push(start + (width * moment) / moments);
    end = start + width;
  }
  return [...found, end];
}

// The moments that are drawn, each with the place where it begins: all, or of those in one column the largest.
function drawnMoments(run, places) {
  const found = [];
  for (let moment = 0; moment < run.count; moment++) {
    const column = Math.floor(places[moment] * COLUMNS);
    const last = found.at(-1);
    if (run.count <= COLUMNS || last?.column !== column) found.push({ column, place: places[moment], moment });
    else if (run.total[moment] > run.total[last.moment]) last.moment = moment;
  }
  return found.map(({ place, moment }) => [place, moment]);
}

function momentAt(panel, place) {
  let low = 0;
  let high = panel.run.count - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (panel.edges[middle] <= place) low = middle;
    else high = middle - 1;
  }
  return low;
}

function middleOf(panel, moment) {
  return (panel.edges[moment] + panel.edges[moment + 1]) / 2;
}

function memorySection() {
  const host = byId("memory-panels");
  if (!host || !chosen.length) return;
  axis = commonAxis();
  chosen.forEach((_, slot) => panels.push(memoryPanel(host, slot)));
  document.querySelectorAll("select[data-run]").forEach((select) => {
    const slot = Number(select.dataset.run);
    if (slot >= chosen.length) {
      select.closest("label").remove();
      return;
    }
    options(
      select,
      runs.map((run) => run.label),
      chosen[slot],
    );
    select.addEventListener("change", () => choose(slot, Number(select.value)));
  });
  limitKeyed();
  document.querySelector(".other-key").hidden = chosen.length < 2;
  for (const button of document.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => zoomed(button.dataset.zoom));
  }
  panels.forEach((panel) => later(panel.chart, () => panelDrawn(panel)));
}

function panelDrawn(panel) {
  panel.shown = picture(panel.chart, (chart) => drawMemory(chart, panel));
  panel.shown.draw();
  follow(panel);
  pin(panel, panel.run.peak_moment);
}

function drawnPanels() {
  return panels.filter((panel) => panel.shown);
}

function choose(slot, place) {
  chosen[slot] = place;
  axis = commonAxis();
  panels.forEach(setRun);
  drawnPanels().forEach((panel) => panel.shown.draw());
  drawnPanels().forEach((panel) => pin(panel, panel.run.peak_moment));
  limitKeyed();
  layersChosen();
  networkChosen();
}

function memoryPanel(host, slot) {
  const panel = { slot };
  panel.title = make("figcaption", { id: `memory-title-${slot}` });
  panel.chart = make("div", { class: "chart memory-chart", "aria-hidden": "true" });
  panel.cursor = make("div", { class: "cursor", "aria-hidden": "true" });
  panel.phases = make("div", { class: "phases", "aria-hidden": "true" });
  panel.told = make("div", { class: "told", id: `memory-told-${slot}` });
  panel.plot = make(
    "div",
    {
      class: "plot",
      role: "slider",
      tabindex: 0,
      "aria-valuemin": 1,
      on: { keydown: (event) => stepTo(panel, event) },
    },
    panel.chart,
    panel.cursor,
    panel.phases,
  );
  host.append(
    make(
      "figure",
      { class: "panel", "aria-labelledby": panel.title.id, "data-panel": slot },
      panel.title,
      make("div", { class: "sides" }, panel.plot, panel.told),
    ),
  );
  setRun(panel);
  return panel;
}

function setRun(panel) {
  const run = runs[chosen[panel.slot]];
  panel.run = run;
  panel.edges = edges(run);
  panel.drawn = drawnMoments(run, panel.edges);
  panel.plot.setAttribute("aria-valuemax", run.count);
  panel.plot.setAttribute("aria-label", `Moment of the step of ${run.label}`);
  panel.title.replaceChildren(make("strong", {}, run.label), " peaks at ", bytesElement(run.peak_bytes));
}

function highest() {
  return Math.max(...chosen.map((place) => runs[place].peak_bytes));
}

// What the peak of a run is held to. A size far above everything would flatten the picture; it is then left out.
function limitOf(run) {
  const bytes = run.limit_bytes ?? record.budget_bytes;
  return bytes !== null && bytes <= 2 * highest() ? bytes : null;
}

function limitKeyed() {
  document.querySelector(".budget-key").hidden = chosen.every((place) => limitOf(runs[place]) === null);
}

function drawMemory(chart, panel) {
  const { run } = panel;
  const limit = limitOf(run);
  const top = Math.max(highest(), ...chosen.map((place) => limitOf(runs[place]) ?? 0)) * 1.02;
  const layered = [
    ["temp", run.total],
    ["saved", run.resident.map((bytes, moment) => bytes + run.saved[moment])],
    ["resident", run.resident],
  ];
  const line = (name, points, style) => ({
    name,
    type: "line",
    step: "end",
    symbol: "none",
    silent: true,
    animation: false,
    data: points,
    lineStyle: { width: 0 },
    ...style,
  });
  const points = (bytes, of) => [
    ...of.drawn.map(([place, moment]) => [place, bytes[moment]]),
    [of.edges.at(-1), bytes[of.drawn.at(-1)[1]]],
  ];
  const series = layered.map(([kind, bytes]) =>
    line(kind, points(bytes, panel), { areaStyle: { color: colour(kind), opacity: 1 } }),
  );
  const other = panels.find((each) => each !== panel);
  if (other) {
    const style = { color: colour("ink"), width: 1, type: [2, 3], opacity: 0.75 };
    series.push(line("other", points(other.run.total, other), { lineStyle: style }));
  }
  // Labels and lines lie on all three colours.
  const backed = { ...textStyle(), backgroundColor: colour("card"), borderRadius: 2, padding: [3, 4] };
  const label = {
    ...backed,
    color: colour("budget"),
    formatter: `${document.querySelector(".budget-key").textContent.trim()} ${size(limit ?? 0)}`,
    position: "insideEndTop",
  };
  series.push({
    type: "line",
    data: [],
    silent: true,
    animation: false,
    markLine: {
      symbol: "none",
      silent: true,
      animation: false,
      data:
        limit === null
          ? []
          : [
              { yAxis: limit, lineStyle: { color: colour("card"), width: 4, type: "solid" }, label: { show: false } },
              { yAxis: limit },
            ],
      lineStyle: { color: colour("budget"), width: 1.5, type: [6, 4] },
      label,
    },
    markPoint: {
      symbol: "circle",
      symbolSize: 7,
      animation: false,
      silent: true,
      itemStyle: { color: colour("ink"), borderColor: colour("card"), borderWidth: 1.5 },
      label: {
        ...backed,
        color: colour("ink"),
        fontWeight: 600,
        position: middleOf(panel, run.peak_moment) < 0.5 ? "right" : "left",
        formatter: size(run.peak_bytes),
      },
      data: [{ coord: [middleOf(panel, run.peak_moment), run.peak_bytes] }],
    },
  });
  chart.setOption(
    {
      animation: false,
      grid: MARGIN,
      xAxis: { type: "value", min: 0, max: 1, show: false },
      yAxis: bytesAxis(top),
      dataZoom: [
        { type: "inside", filterMode: "none", zoomOnMouseWheel: "ctrl", preventDefaultMouseMove: false },
      ],
      series,
    },
    { replaceMerge: ["series"] },
  );
  phasesDrawn(panel);
  cursorDrawn(panel);
}

function pixel(panel, place) {
  return panel.shown.chart.convertToPixel({ xAxisIndex: 0 }, place);
}

function phasesDrawn(panel) {
  const right = panel.chart.clientWidth - MARGIN.right;
  panel.phases.replaceChildren(
    ...[...axis].map(([phase, { start, width }]) => {
      const from = Math.max(pixel(panel, start), MARGIN.left);
      const to = Math.min(pixel(panel, start + width), right);
      const strip = make("span", { class: `phase ${phase}` }, to - from > phase.length * 7 + 5 ? phase : "");
      strip.style.left = `${from}px`;
      strip.style.width = `${Math.max(to - from, 0)}px`;
      return strip;
    }),
  );
}

function cursorDrawn(panel) {
  if (panel.moment === undefined) return;
  const from = pixel(panel, panel.edges[panel.moment]);
  const to = pixel(panel, panel.edges[panel.moment + 1]);
  const inside = to >= MARGIN.left && from <= panel.chart.clientWidth - MARGIN.right;
  panel.cursor.hidden = !inside;
  panel.cursor.style.left = `${from}px`;
  panel.cursor.style.width = `${Math.max(to - from, 1)}px`;
}
