// Layers: bars of blocks and of the layers in them.

let bars = null;
let barRows = [];

// The names of the segments: the runs of a page that compares layers are of one model.
function segmentNames() {
  return (record.networks[0]?.segments ?? []).map(textAt);
}

// The layers of the chosen runs by path, in the order of the model, with a row of each run or nothing.
function layerRows() {
  const found = new Map();
  chosen.forEach((place, slot) => {
    const all = runs[place].layers;
    all.path.forEach((path, index) => {
      if (!found.has(path)) {
        found.set(path, {
          name: layerName(textAt(path)),
          type: textAt(all.type[index]),
          segment: all.segment[index],
          of: [],
        });
      }
      found.get(path).of[slot] = {
        saved: all.saved_bytes[index],
        temp: all.temp_bytes[index],
        held: all.parameter_bytes[index] + all.gradient_bytes[index] + all.state_bytes[index],
        state: all.state[index],
      };
    });
  });
  return [...found.values()];
}

// What rows need together: saved and held bytes add up, of temp the largest counts.
function together(rows, slot) {
  const sum = { saved: 0, temp: 0, held: 0, state: 0 };
  for (const { of } of rows) {
    const own = of[slot];
    if (!own) continue;
    sum.saved += own.saved;
    sum.temp = Math.max(sum.temp, own.temp);
    sum.held += own.held;
    sum.state |= own.state;
  }
  if (sum.state & STATES.trains) sum.state &= ~STATES.frozen;
  return sum;
}

function segmentRows(rows) {
  const names = segmentNames();
  const members = new Map();
  for (const row of rows) {
    if (!members.has(row.segment)) members.set(row.segment, []);
    members.get(row.segment).push(row);
  }
  return [...members]
    .sort(([one], [other]) => one - other)
    .map(([segment, inside]) => ({
      name: names[segment] ?? layerName(""),
      type: "",
      segment,
      of: chosen.map((_, slot) => together(inside, slot)),
    }));
}

function layersSection() {
  if (!byId("layers-bars") || !chosen.length) return;
  later(byId("layers-bars"), layersStarted);
}

function layersStarted() {
  const shown = byId("layers-shown");
  const used = new Set(layerRows().map((row) => row.segment));
  const segments = [...segmentNames().entries()].filter(([segment]) => used.has(segment));
  shown.replaceChildren(
    option("blocks", "all blocks"),
    option("layers", "all layers"),
    make("optgroup", { label: "layers of" }, ...segments.map(([segment, name]) => option(segment, name))),
  );
  shown.addEventListener("change", () => bars.draw());
  byId("layers-sorted").addEventListener("change", () => bars.draw());
  byId("layers-find").addEventListener("input", (event) => {
    table.find = event.target.value.trim().toLowerCase();
    table.limit = ROWS_AT_ONCE;
    tableDrawn();
  });
  byId("layers-more").addEventListener("click", () => {
    table.limit = Infinity;
    tableDrawn();
  });
  bars = picture(byId("layers-bars"), drawBars);
  bars.chart.getZr().on("click", (event) => {
    const row = barRows[barAt(bars.chart, event)];
    if (row && shown.value === "blocks") {
      shown.value = String(row.segment);
      bars.draw();
    } else if (shown.value !== "layers" && shown.value !== "blocks") {
      shown.value = "blocks";
      bars.draw();
    }
  });
  layersChosen();
}

function layersChosen() {
  if (!bars) return;
  table.rows = layerRows();
  const names = chosen.map((place) => runs[place].label);
  byId("layers-legend").replaceChildren(
    ...names.map((name, slot) => make("li", {}, make("span", { class: `swatch run-${slot}` }), name)),
  );
  bars.draw();
  headDrawn();
  tableDrawn();
}

function drawBars(chart) {
  const shown = byId("layers-shown").value;
  const rows = layerRows();
  if (shown === "blocks") barRows = segmentRows(rows);
  else if (shown === "layers") barRows = rows;
  else barRows = rows.filter((row) => row.segment === Number(shown));
  const weight = (row) => Math.max(...row.of.map((own) => (own ? own.saved + own.temp : 0)));
  if (byId("layers-sorted").checked) barRows = [...barRows].sort((one, other) => weight(other) - weight(one));
  barsDrawn(chart, {
    rows: barRows,
    panes: ["saved", "temp"],
    series: chosen.map((place, slot) => ({
      name: runs[place].label,
      colour: `run-${slot}`,
      bytes: (row, kind) => row.of[slot]?.[kind] ?? 0,
    })),
    cursor: shown === "layers" ? "default" : "pointer",
    told: barsTold,
  });
  chart
    .getDom()
    .setAttribute(
      "aria-label",
      `Saved and temp of ${barRows.length} ${shown === "blocks" ? "blocks" : "layers"}; the table below has the figures`,
    );
}

function barsTold(row) {
  const line = (place, own) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, make("span", { class: `swatch run-${own}` }), runs[place].label),
      ...["saved", "temp", "held"].map((kind) =>
        make("td", { class: "number" }, bytesElement(row.of[own]?.[kind] ?? 0)),
      ),
    );
  const slot = chosen.length - 1;
  const states = stateWords(row.of[slot]?.state ?? 0).join(", ");
  return make(
    "div",
    { class: "tip" },
    make("strong", {}, row.name),
    row.type ? make("span", {}, ` ${row.type}`) : "",
    make(
      "table",
      {},
      make("thead", {}, make("tr", {}, make("td"), ...["saved", "temp", "held"].map((kind) => make("th", {}, kind)))),
      make("tbody", {}, ...chosen.map(line)),
    ),
    states ? make("p", {}, `in ${runs[chosen[slot]].label}: ${states}`) : "",
  );
}
