// The checks of a gate: the layers of each as bars, now and in the baseline, by module or one by one.

function gateSection() {
  document.querySelectorAll("table.sortable").forEach(sortable);
  (record.gate?.checks ?? []).forEach((check, place) => {
    const bars = document.querySelector(`[data-bars="${place}"]`);
    // A check that holds is looked at by few: its picture is drawn for whoever comes near it.
    if (check && bars) later(bars, () => checkStarted(check, place, bars), { unseen: !check.holds });
  });
}

// The layers of a check, now and before; a layer that is not there has no bytes.
function partsOf(check) {
  return check.layer.map((path, index) => ({
    path: textAt(path),
    name: textAt(path) || "the model itself",
    type: textAt(check.type[index]),
    output: textAt(check.output[index]),
    now: check.bytes[index],
    before: check.before_bytes[index],
    kinds: ["saved", "temp", "held"].map((kind) => [kind, check[`${kind}_bytes`][index]]),
    inside: 1,
  }));
}

function isInside(path, module) {
  return !module || path === module || path.startsWith(`${module}.`);
}

// What is directly inside a module: modules with the sums of their layers, and layers.
function modulesOf(parts, module) {
  const found = new Map();
  for (const part of parts.filter(({ path }) => isInside(path, module))) {
    const end = part.path === module ? -1 : part.path.indexOf(".", module ? module.length + 1 : 0);
    const path = end < 0 ? part.path : part.path.slice(0, end);
    if (!found.has(path)) found.set(path, []);
    found.get(path).push(part);
  }
  const sum = (inside, key) =>
    inside.every((part) => part[key] === null) ? null : inside.reduce((bytes, part) => bytes + (part[key] ?? 0), 0);
  return [...found].map(([path, inside]) =>
    inside.length === 1
      ? inside[0]
      : { path, name: path, inside: inside.length, now: sum(inside, "now"), before: sum(inside, "before") },
  );
}

// Modules with several layers, the outer ones first.
function modulesInside(parts) {
  const counts = new Map();
  for (const { path } of parts) {
    for (let end = path.indexOf("."); end >= 0; end = path.indexOf(".", end + 1)) {
      counts.set(path.slice(0, end), (counts.get(path.slice(0, end)) ?? 0) + 1);
    }
  }
  return [...counts].filter(([, layers]) => layers > 1).map(([path]) => path);
}

function checkStarted(check, place, element) {
  const parts = partsOf(check);
  const modules = modulesInside(parts);
  const shown = document.querySelector(`[data-shown="${place}"]`);
  const largest = document.querySelector(`[data-largest="${place}"]`);
  const rest = { path: null, name: "(batch and optimizer)", now: check.rest_bytes, before: check.before_rest_bytes };
  let rows = [];
  shown.replaceChildren(
    option("modules", "modules"),
    option("layers", "all layers"),
    ...(modules.length
      ? [make("optgroup", { label: "inside of" }, ...modules.map((path, at) => option(at, path)))]
      : []),
  );
  const drawn = picture(element, (chart) => {
    const module = modules[shown.value];
    if (shown.value === "layers") rows = [...parts];
    else rows = modulesOf(parts, module ?? "");
    // A module with nothing beside it says nothing: its own parts do.
    while (rows.length === 1 && rows[0].inside > 1) rows = modulesOf(parts, rows[0].path);
    if (module === undefined && (rest.now || rest.before)) rows.push(rest);
    if (largest.checked) rows.sort((one, other) => weightOf(other) - weightOf(one));
    barsDrawn(chart, {
      rows,
      panes: [check.of],
      series: [
        ...(check.before_predicted_bytes === null ? [] : [series("before", "baseline", "run-0")]),
        series("now", "now", "run-1"),
      ],
      cursor: shown.value === "layers" ? "default" : "pointer",
      told: (row) => partTold(row, check),
    });
    const what = shown.value === "layers" ? "layers" : "modules";
    element.setAttribute("aria-label", `The ${check.of} of ${rows.length} ${what}; the tables have the figures`);
  });
  drawn.chart.getZr().on("click", (event) => {
    const row = rows[barAt(drawn.chart, event)];
    if (!row || shown.value === "layers") return;
    const at = row.inside > 1 ? modules.indexOf(row.path) : -1;
    shown.value = at < 0 ? "modules" : String(at);
    drawn.draw();
  });
  shown.addEventListener("change", drawn.draw);
  largest.addEventListener("change", drawn.draw);
  drawn.draw();
}

function series(key, name, own) {
  return { name, colour: own, bytes: (row) => row[key] ?? 0 };
}

function weightOf({ now, before }) {
  return Math.max(now ?? 0, before ?? 0);
}

function partTold(row, check) {
  const known = (bytes) => (bytes === null || bytes === undefined ? "not there" : bytesElement(bytes));
  const line = (name, own, bytes) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, make("span", { class: `swatch ${own}` }), name),
      make("td", { class: "number" }, known(bytes)),
    );
  const about = [row.type, row.output, row.inside > 1 ? `${grouped(String(row.inside))} layers` : ""].filter(Boolean);
  const kinds = row.kinds && row.now !== null ? row.kinds : [];
  return make(
    "div",
    { class: "tip" },
    make("strong", {}, row.name),
    about.length ? make("p", {}, about.join(", ")) : "",
    make(
      "table",
      {},
      make(
        "tbody",
        {},
        check.before_predicted_bytes === null ? "" : line("baseline", "run-0", row.before),
        line("now", "run-1", row.now),
      ),
    ),
    kinds.length ? make("p", {}, ...kinds.flatMap(kindTold)) : "",
  );
}

function kindTold([kind, bytes], place) {
  return [place ? ", " : "", `${kind} `, bytesElement(bytes)];
}
