// A moment of the step: chosen by pointer or by key, shown in words, and kept by a click.

const ALIVE_SHOWN = 8;

// Shows a moment of a panel, and in words what is alive then.
function show(panel, moment) {
  panel.moment = moment;
  cursorDrawn(panel);
  const { run } = panel;
  const phase = phaseAt(run, moment);
  const layer = run.moments ? layerName(textAt(run.moments.layer[moment])) : "";
  const op = run.moments ? textAt(run.moments.op[moment]) : "";
  const where = phase === "optimizer" ? "the optimizer's update" : layer ? `${phase} of ${layer}` : phase;
  panel.plot.setAttribute("aria-valuenow", moment + 1);
  panel.plot.setAttribute("aria-valuetext", `${where}${op ? `, ${op}` : ""}: ${size(run.total[moment])} alive`);
  const kinds = KINDS.map((kind) =>
    make("li", {}, make("span", { class: `swatch ${kind}` }), `${kind} `, bytesElement(run[kind][moment])),
  );
  panel.told.replaceChildren(
    make(
      "p",
      { class: "where" },
      make("strong", {}, where),
      make(
        "span",
        { class: "op" },
        `${op && phase !== "optimizer" ? `${op}, ` : ""}moment ${grouped(String(moment + 1))} of ${grouped(String(run.count))}`,
      ),
    ),
    make("p", { class: "alive" }, bytesElement(run.total[moment]), " alive"),
    make("ul", { class: "kinds" }, ...kinds),
    aliveTable(run, moment),
  );
}

function aliveTable(run, moment) {
  const all = run.allocations;
  if (!all) return "";
  const alive = aliveAt(run, moment);
  const named = alive.length === ALIVE_SHOWN + 1 ? alive : alive.slice(0, ALIVE_SHOWN);
  const rest = alive.slice(named.length);
  const row = (bytes, kind, what, who) =>
    make(
      "tr",
      {},
      make("td", { class: "number" }, bytesElement(bytes)),
      make(
        "td",
        { class: "owner", title: who || undefined },
        kind ? make("span", { class: `swatch ${kind}` }) : "",
        make("span", { class: "name" }, who),
        " ",
        make("span", { class: "what" }, what),
      ),
    );
  const rows = named.map((index) => {
    const op = textAt(all.op[index]);
    const what = textAt(all.what[index]);
    const path = textAt(all.layer[index]);
    const owner = path || (what === "input" ? "the model's input" : what === "update" ? "all parameters" : "(model)");
    return row(
      all.bytes[index],
      KINDS[all.kind[index]],
      what === "activation" && op ? op : op && what !== "update" ? `${what}, ${op}` : what,
      owner,
    );
  });
  if (rest.length) {
    const sum = rest.reduce((bytes, index) => bytes + all.bytes[index], 0);
    rows.push(row(sum, "", "", `...and ${grouped(String(rest.length))} more`));
  }
  return make(
    "table",
    { class: "alive-table" },
    make("caption", {}, "Alive at this moment, the largest first"),
    make("tbody", {}, ...rows),
  );
}

// Shows the same place of the step in every panel.
function showPlace(place) {
  for (const panel of drawnPanels()) show(panel, momentAt(panel, place));
}

function pin(panel, moment) {
  panel.pinned = moment;
  show(panel, moment);
}

// Keys move one moment of this panel; the others follow to the same place of the step.
function stepTo(panel, event) {
  const last = panel.run.count - 1;
  const steps = {
    ArrowRight: 1,
    ArrowUp: 1,
    ArrowLeft: -1,
    ArrowDown: -1,
    PageUp: 10,
    PageDown: -10,
    Home: -last,
    End: last,
  };
  if (!(event.key in steps)) return;
  event.preventDefault();
  if (!panel.shown) return;
  const moment = Math.min(Math.max(panel.moment + steps[event.key], 0), last);
  const place = middleOf(panel, moment);
  for (const each of drawnPanels()) pin(each, each === panel ? moment : momentAt(each, place));
  revealed(panel);
}

// Moves what is shown of the step, if the moment of a panel is outside of it.
function revealed(panel) {
  const { start, end } = panel.shown.chart.getOption().dataZoom[0];
  const place = 100 * middleOf(panel, panel.moment);
  if (place < start || place > end) around(panel, end - start);
}

// Shows so many percent of the step, with the moment of a panel in the middle.
function around(panel, width) {
  const place = 100 * middleOf(panel, panel.moment);
  const start = Math.min(Math.max(place - width / 2, 0), 100 - width);
  panel.shown.chart.dispatchAction({ type: "dataZoom", start, end: start + width });
}

function follow(panel) {
  const { chart } = panel.shown;
  const placeOf = (event) => {
    const inside = chart.containPixel({ gridIndex: 0 }, [event.offsetX, event.offsetY]);
    return inside ? chart.convertFromPixel({ xAxisIndex: 0 }, event.offsetX) : undefined;
  };
  chart.getZr().on("mousemove", (event) => {
    const place = placeOf(event);
    if (place !== undefined) showPlace(place);
  });
  chart.getZr().on("click", (event) => {
    if (placeOf(event) !== undefined) drawnPanels().forEach((each) => pin(each, each.moment));
  });
  chart.getZr().on("globalout", () => drawnPanels().forEach((each) => show(each, each.pinned)));
  chart.on("datazoom", () => {
    const { start, end } = chart.getOption().dataZoom[0];
    for (const each of drawnPanels()) {
      const now = each.shown.chart.getOption().dataZoom[0];
      if (each !== panel && (now.start !== start || now.end !== end)) {
        each.shown.chart.dispatchAction({ type: "dataZoom", start, end });
      }
      phasesDrawn(each);
      cursorDrawn(each);
    }
  });
}

function zoomed(how) {
  if (!panels[0].shown) return;
  if (how === "peak") {
    drawnPanels().forEach((panel) => pin(panel, panel.run.peak_moment));
    revealed(panels[0]);
    return;
  }
  const { start, end } = panels[0].shown.chart.getOption().dataZoom[0];
  around(panels[0], how === "all" ? 100 : Math.min(100, Math.max(0.2, (end - start) * (how === "in" ? 0.5 : 2))));
}
