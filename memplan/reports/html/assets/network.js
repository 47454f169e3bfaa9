// The network as a graph: blocks from the input to the output, and the layers of the chosen one.

const NODE = { width: 224, height: 46 };
const MOST_NODES = 120;
// The sizes of texts in boxes, as the style sheet has them.
const NAME = "600 12.5px";
const BYTES = "12.5px";
const SMALL = "11px";
const ruler = document.createElement("canvas").getContext("2d");
const view = { run: 0, group: 0, drawn: false };
let groups = [];
let calls = null;

function networkSection() {
  if (!byId("network-blocks") || !chosen.length) return;
  if (!record.networks.length) {
    byId("network").hidden = true;
    return;
  }
  const select = byId("network-run");
  select.addEventListener("change", () => {
    showNetworkOf(Number(select.value));
    networkDrawn();
  });
  byId("network-of").hidden = runs.length < 2;
  showNetworkOf(chosen.at(-1));
  later(byId("network-blocks"), () => {
    view.drawn = true;
    networkChosen();
  });
}

// Takes the network of a run; its segments make groups, of which each is a node.
function showNetworkOf(place) {
  view.run = place;
  const own = record.networks[runs[place].network];
  if (own === calls) return;
  calls = own;
  const used = new Set(calls.segment);
  const segments = calls.segments.map((_, segment) => segment).filter((segment) => used.has(segment));
  const each = Math.ceil(segments.length / MOST_NODES);
  groups = [];
  for (let from = 0; from < segments.length; from += each) groups.push(segments.slice(from, from + each));
  view.group = groupOfPeak();
}

function segmentName(segment) {
  return textAt(calls.segments[segment]);
}

function networkChosen() {
  if (!view.drawn) return;
  showNetworkOf(chosen.at(-1));
  options(
    byId("network-run"),
    runs.map((run) => run.label),
    view.run,
  );
  networkDrawn();
  const node = chosenNode();
  if (node) byId("network-blocks").scrollTop = Math.max(0, node.transform.baseVal[0].matrix.f - 160);
}

function chosenNode() {
  return byId("network-blocks").querySelector('[aria-pressed="true"]');
}

function groupOfPeak() {
  const run = runs[view.run];
  if (!run.moments) return 0;
  const at = run.layers.path.indexOf(run.moments.layer[run.peak_moment]);
  const segment = drawnSegment(run.layers.path[at], run.layers.segment[at]);
  const found = groups.findIndex((group) => group.includes(segment));
  return Math.max(found, 0);
}

// The segment that a layer is drawn in: what stands in no segment, as the model itself, is where it runs first.
function drawnSegment(path, segment) {
  return calls.segment.includes(segment) ? segment : calls.segment[calls.layer.indexOf(path)];
}

function groupName(group) {
  const first = segmentName(group[0]);
  return group.length === 1 ? first : `${first} to ${segmentName(group.at(-1))}`;
}

// Layers of the shown run, by the place of their path.
function ownLayers() {
  const all = runs[view.run].layers;
  return new Map(
    all.path.map((path, index) => [
      path,
      {
        segment: drawnSegment(path, all.segment[index]),
        saved: all.saved_bytes[index],
        temp: all.temp_bytes[index],
        state: all.state[index],
        type: textAt(all.type[index]),
        treatments: textAt(all.treatments[index]),
      },
    ]),
  );
}

function networkDrawn() {
  const layers = ownLayers();
  const groupOf = new Map(groups.flatMap((group, place) => group.map((segment) => [segment, place])));
  const sums = groups.map(() => ({ saved: 0, temp: 0, state: 0 }));
  for (const layer of layers.values()) {
    const sum = sums[groupOf.get(layer.segment)];
    if (!sum) continue;
    sum.saved += layer.saved;
    sum.temp = Math.max(sum.temp, layer.temp);
    sum.state |= layer.state;
  }
  const nodes = groups.map((group, place) => {
    const sum = sums[place];
    if (sum.state & STATES.trains) sum.state &= ~STATES.frozen;
    const [first, last] = [group[0], group.at(-1)].map(segmentName);
    const type = group.length > 1 ? `to ${last}` : "";
    return { name: first, type, ...sum, chosen: place === view.group, act: () => chooseGroup(place) };
  });
  const links = new Map();
  calls.from.forEach((from, index) => {
    const ends = [from, calls.to[index]].map((call) => groupOf.get(calls.segment[call]));
    if (ends[0] !== ends[1]) links.set(ends.join(), [...(links.get(ends.join()) ?? []), calls.to[index]]);
  });
  // A value that several layers of a block read on their own is handed on, and used again.
  const drawn = [...links].flatMap(([ends, readers]) => {
    const [from, to] = ends.split(",").map(Number);
    return [[from, to, to - from > 1], ...(new Set(readers).size > 1 && to - from === 1 ? [[from, to, true]] : [])];
  });
  graph(byId("network-blocks"), nodes, drawn);
  layersOfGroup(layers);
}

function chooseGroup(place) {
  view.group = place;
  networkDrawn();
  chosenNode()?.focus({ preventScroll: true });
}

function layersOfGroup(layers) {
  const group = groups[view.group];
  const inside = calls.segment
    .map((segment, call) => (group.includes(segment) ? call : -1))
    .filter((call) => call >= 0);
  const shown = inside.slice(0, MOST_NODES);
  const places = new Map(shown.map((call, place) => [call, place]));
  const seen = new Set();
  const common = group.length === 1 ? `${segmentName(group[0])}.` : "";
  const nodes = shown.map((call) => {
    const path = calls.layer[call];
    const layer = layers.get(path);
    const first = !seen.has(path);
    seen.add(path);
    const whole = layerName(textAt(path));
    const name = whole.startsWith(common) ? whole.slice(common.length) : whole;
    return {
      name: `${name}${first ? "" : " (again)"}`,
      whole,
      type: layer?.type ?? "",
      treatments: layer?.treatments ?? "",
      saved: first ? (layer?.saved ?? 0) : 0,
      temp: layer?.temp ?? 0,
      state: layer?.state ?? 0,
    };
  });
  const links = [];
  calls.from.forEach((from, index) => {
    const ends = [places.get(from), places.get(calls.to[index])];
    if (ends[0] !== undefined && ends[1] !== undefined) links.push([...ends, false]);
  });
  // What comes from before is drawn as one value, unless nothing does.
  const entering = shown.filter((call) => calls.to.some((to, index) => to === call && !places.has(calls.from[index])));
  if (entering.length) {
    nodes.push({ name: view.group ? "from before" : "input", bare: true });
    entering.forEach((call) => links.push([nodes.length - 1, places.get(call), false]));
  }
  const more = inside.length > shown.length ? `, the first ${MOST_NODES} of ${grouped(String(inside.length))}` : "";
  byId("network-layers-title").textContent = `Layers of ${groupName(group)}${more}`;
  graph(byId("network-layers"), nodes, links);
  byId("network-layers").scrollTop = 0;
}

// Draws nodes and links from the top to the bottom; a link is a pair of places and whether it goes round something.
function graph(host, nodes, links) {
  const plan = new charts.Graph({ multigraph: true });
  plan.setGraph({ rankdir: "TB", nodesep: 22, edgesep: 22, ranksep: 13, marginx: 14, marginy: 10 });
  plan.setDefaultEdgeLabel(() => ({}));
  const width = Math.min(NODE.width, Math.max(150, host.clientWidth - 90));
  nodes.forEach((node, place) =>
    plan.setNode(String(place), { width: node.bare ? 96 : width, height: node.bare ? 24 : NODE.height }),
  );
  links.forEach(([from, to, around], place) =>
    plan.setEdge(String(from), String(to), { minlen: around ? 2 : 1, weight: around ? 1 : 4 }, String(place)),
  );
  charts.layout(plan);
  const whole = plan.graph();
  const most = Math.max(1, ...nodes.map((node) => node.saved ?? 0));
  let [left, right] = [0, whole.width];
  const lines = links.map(([from, to], place) => {
    const { points } = plan.edge(String(from), String(to), String(place));
    for (const { x } of points) {
      left = Math.min(left, x - 8);
      right = Math.max(right, x + 8);
    }
    const around = links[place][2] || plan.node(String(to)).y - plan.node(String(from)).y > 2 * NODE.height;
    return draw("path", {
      d: curve(points),
      class: around ? "link around" : "link",
      "marker-end": `url(#${host.id}-arrow)`,
    });
  });
  const arrow = draw(
    "marker",
    {
      id: `${host.id}-arrow`,
      viewBox: "0 0 8 8",
      refX: 7,
      refY: 4,
      markerUnits: "userSpaceOnUse",
      markerWidth: 8,
      markerHeight: 8,
      orient: "auto",
    },
    draw("path", { d: "M0,0 L8,4 L0,8 z", class: "arrow" }),
  );
  const drawn = nodes.map((node, place) => box(node, plan.node(String(place)), most));
  host.replaceChildren(
    draw(
      "svg",
      {
        width: Math.ceil(right - left),
        height: Math.ceil(whole.height),
        viewBox: [left, 0, Math.ceil(right - left), Math.ceil(whole.height)].join(" "),
        role: "presentation",
      },
      draw("defs", {}, arrow),
      ...lines,
      ...drawn,
    ),
  );
  host.scrollLeft = plan.node("0").x - left - host.clientWidth / 2;
}

function curve(points) {
  const [first, ...rest] = points;
  let path = `M${first.x},${first.y}`;
  rest.forEach((point, index) => {
    const next = rest[index + 1];
    if (!next) path += ` L${point.x},${point.y}`;
    else path += ` Q${point.x},${point.y} ${(point.x + next.x) / 2},${(point.y + next.y) / 2}`;
  });
  return path;
}

function box(node, { x, y, width, height }, most) {
  const place = { transform: `translate(${x - width / 2},${y - height / 2})` };
  if (node.bare) {
    return draw(
      "g",
      { ...place, class: "node entry" },
      draw("text", { x: width / 2, y: 16, "text-anchor": "middle" }, node.name),
    );
  }
  const kind = node.state & STATES.trains ? "trains" : node.state & STATES.frozen ? "frozen" : "bare";
  const words = stateWords(node.state);
  const bytes = node.saved ? size(node.saved) : "";
  const small = [node.type, ...words].filter(Boolean).join(", ");
  const seen = [node.name, bytes, small].filter(Boolean).join(", ");
  const more = [
    node.whole !== node.name && node.whole,
    `saved ${size(node.saved)}`,
    `temp ${size(node.temp)}`,
    node.treatments && `treatments: ${node.treatments}`,
  ];
  const told = [seen, ...more].filter(Boolean).join("; ");
  const marks = ["recomputed", "pruned"].filter((mark) => node.state & STATES[mark]);
  const left = 9 + 6 * marks.length;
  const room = width - 9 - left;
  const act = node.act && {
    click: node.act,
    keydown: (event) => stepped(event, node.act),
  };
  return draw(
    "g",
    {
      ...place,
      class: `node ${kind}`,
      role: node.act ? "button" : "img",
      tabindex: node.act ? 0 : undefined,
      "aria-pressed": node.act ? String(node.chosen) : undefined,
      on: act || {},
    },
    draw("title", {}, told),
    draw(
      "g",
      { "aria-hidden": "true" },
      draw("rect", { class: "back", width, height, rx: 5 }),
      ...marks.map((mark, index) =>
        draw("rect", { class: `mark-${mark}`, x: 4 + 6 * index, y: 6, width: 4, height: height - 12, rx: 1.5 }),
      ),
      draw(
        "text",
        { class: "name", x: left, y: 18 },
        fitting(node.name, bytes ? room - 8 - widthOf(bytes, BYTES) : room, NAME, ending),
      ),
      draw("text", { class: "bytes", x: width - 9, y: 18, "text-anchor": "end" }, bytes),
      draw("text", { class: "small", x: left, y: 33 }, fitting(small, room, SMALL, elided)),
      draw("rect", {
        class: "amount",
        x: left,
        y: height - 7,
        width: room * (node.saved / most),
        height: 3,
        rx: 1.5,
      }),
    ),
  );
}

function widthOf(text, font) {
  ruler.font = `${font} ${getComputedStyle(document.body).fontFamily}`;
  return ruler.measureText(text).width;
}

// What of a text fits into so many pixels; ``cut`` takes it and a number of characters.
function fitting(text, room, font, cut) {
  let most = text.length;
  let shown = text;
  for (let width = widthOf(shown, font); width > room && most > 4; width = widthOf(shown, font)) {
    most = Math.max(4, Math.min(most - 1, Math.floor((most * room) / width)));
    shown = cut(text, most);
  }
  return shown;
}

// The end of a text that is too long: blocks of a network begin alike.
function ending(text, most) {
  return text.length <= most ? text : `...${text.slice(3 - most)}`;
}

// Enter and space choose a block, the arrows go to the next one.
function stepped(event, act) {
  const steps = { ArrowDown: 1, ArrowUp: -1 };
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    act();
  } else if (event.key in steps) {
    event.preventDefault();
    const nodes = [...event.currentTarget.parentNode.querySelectorAll("[role=button]")];
    nodes[nodes.indexOf(event.currentTarget) + steps[event.key]]?.focus();
  }
}
