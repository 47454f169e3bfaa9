// Elements of the page, made without any text being read as HTML, and what all pictures share.

const SVG = "http://www.w3.org/2000/svg";
const pictures = [];

function make(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function draw(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, act] of Object.entries(value)) element.addEventListener(event, act);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== undefined));
  return element;
}

function byId(id) {
  return document.getElementById(id);
}

// A number of bytes as text, with the exact number beside it for whoever reads the page by program.
function bytesElement(bytes, text = size(bytes)) {
  return make("data", { value: bytes, class: bytes ? undefined : "zero", title: `${grouped(String(bytes))} B` }, text);
}

// A choice of a list, which is as wide as its longest one.
function option(value, name) {
  return make("option", { value }, elided(name, 60));
}

function options(select, names, chosen) {
  select.replaceChildren(...names.map((name, place) => option(place, name)));
  select.value = String(chosen);
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// A picture that is drawn anew when colours or widths change; ``draws`` is handed the chart. The library stops every
// wheel, also those that it makes nothing of; without Ctrl they are the page's.
function picture(element, draws) {
  element.addEventListener("wheel", (event) => event.ctrlKey || event.stopPropagation(), true);
  const chart = charts.init(element, null, { renderer: "svg" });
  const shown = { chart, draw: () => draws(chart) };
  pictures.push(shown);
  return shown;
}

function redraw() {
  for (const { chart, draw: again } of pictures) {
    chart.resize();
    again();
  }
}

function textStyle() {
  return { fontFamily: getComputedStyle(document.body).fontFamily, fontSize: 12, color: colour("muted") };
}

// Options of a tooltip whose content is an element, so that no name in it is read as HTML.
function tooltip(content, trigger) {
  return {
    trigger,
    confine: true,
    transitionDuration: 0,
    axisPointer: { type: trigger === "axis" ? "shadow" : "none", shadowStyle: { color: colour("shade") } },
    backgroundColor: colour("card"),
    borderColor: colour("line"),
    textStyle: { ...textStyle(), color: colour("ink") },
    formatter: content,
  };
}

// Axis of bytes from 0 to a round number that is not below ``most``; one that lies has so many pixels of ``room``, and
// as many labels as stand apart in it.
function bytesAxis(most, { room, ...extra } = {}) {
  const power = 10 ** Math.floor(Math.log10(Math.max(most, 1)));
  const round = [1, 1.2, 1.6, 2, 2.4, 3.2, 4, 5, 6, 8, 10].find((step) => step * power >= most);
  const max = round * power;
  const unit = unitFor(max);
  const parts = [round % 5 && round !== 1 ? 4 : 5, 2].find((parts) => !room || room / parts >= 96) ?? 1;
  return {
    type: "value",
    min: 0,
    max,
    interval: max / parts,
    axisLabel: {
      ...textStyle(),
      hideOverlap: true,
      alignMinLabel: room && "left",
      alignMaxLabel: room && "right",
      formatter: (bytes) => formatBytes(bytes, unit),
    },
    splitLine: { lineStyle: { color: colour("line") } },
    axisLine: { show: false },
    axisTick: { show: false },
    ...extra,
  };
}
