// The table of layers: sorted by its headings, searched, and no longer than asked for.

const ROWS_AT_ONCE = 16;
const table = { sort: null, descending: true, find: "", limit: ROWS_AT_ONCE, printed: false, rows: [] };

// Columns of the table: a key, a heading, and the run that it is about.
function columns() {
  const last = chosen.length - 1;
  const quantities = ["saved", "temp", "held"].flatMap((kind) => chosen.map((_, slot) => ({ kind, slot })));
  return [
    { kind: "name", title: "layer" },
    { kind: "type", title: "type" },
    { kind: "state", slot: last, title: last ? `state in ${runs[chosen[last]].label}` : "state" },
    ...quantities.map(({ kind, slot }) => ({ kind, slot, title: runs[chosen[slot]].label })),
  ];
}

function valueOf(row, { kind, slot }) {
  if (kind === "name" || kind === "type") return row[kind];
  if (kind === "state") return row.of[slot] ? stateWords(row.of[slot].state).join(", ") : "";
  return row.of[slot]?.[kind] ?? 0;
}

function isNumber({ kind }) {
  return kind === "saved" || kind === "temp" || kind === "held";
}

function headDrawn() {
  const span = chosen.length;
  const groups = make(
    "tr",
    {},
    make("td", { colspan: 3 }),
    ...["saved", "temp", "held"].map((kind) => make("th", { scope: "colgroup", colspan: span, class: "number" }, kind)),
  );
  const heads = columns().map((column, place) =>
    make(
      "th",
      { scope: "col", class: isNumber(column) ? "number" : undefined, "aria-sort": sortOf(place) },
      make(
        "button",
        {
          type: "button",
          "data-column": place,
          on: { click: () => sorted(place) },
          "aria-label": isNumber(column) ? `Sort by ${column.kind}, ${column.title}` : `Sort by ${column.title}`,
        },
        // A line may end between the words of a run, and not between a number and its unit.
        column.title.replace(/(\d) ([KM]?B)\b/, "$1\u00a0$2"),
      ),
    ),
  );
  byId("layers-table").tHead.replaceChildren(groups, make("tr", {}, ...heads));
}

function sortOf(place) {
  return table.sort === place ? (table.descending ? "descending" : "ascending") : "none";
}

// Numbers come with the largest first, texts from A to Z; again turns them round, and once more restores the order.
function sorted(place) {
  const first = isNumber(columns()[place]);
  if (table.sort !== place) Object.assign(table, { sort: place, descending: first });
  else if (table.descending === first) table.descending = !first;
  else table.sort = null;
  headDrawn();
  tableDrawn();
  byId("layers-table").querySelector(`[data-column="${place}"]`).focus();
}

function tableDrawn() {
  const all = columns();
  let rows = table.rows.filter((row) => `${row.name} ${row.type}`.toLowerCase().includes(table.find));
  if (table.sort !== null) {
    const column = all[table.sort];
    const turn = table.descending ? -1 : 1;
    const compare = isNumber(column)
      ? (one, other) => one - other
      : (one, other) => one.localeCompare(other, "en", { numeric: true });
    rows = [...rows].sort((one, other) => turn * compare(valueOf(one, column), valueOf(other, column)));
  }
  const shown = rows.slice(0, table.printed ? rows.length : table.limit);
  for (const column of all.filter(isNumber)) {
    column.unit = unitFor(rows.reduce((most, row) => Math.max(most, valueOf(row, column)), 0));
  }
  // Nothing but zero reads as zero.
  const written = (bytes, unit) =>
    bytes && bytes < BYTES_PER_UNIT[unit] / 20 ? size(bytes) : formatBytes(bytes, unit);
  const figure = (bytes, { unit }) => make("td", { class: "number" }, bytesElement(bytes, written(bytes, unit)));
  const cell = (row, column, place) => {
    if (place === 0) return make("th", { scope: "row", class: "path", title: row.name }, row.name);
    return isNumber(column) ? figure(valueOf(row, column), column) : make("td", {}, valueOf(row, column));
  };
  const body = byId("layers-table").tBodies[0];
  body.replaceChildren(...shown.map((row) => make("tr", {}, ...all.map((column, place) => cell(row, column, place)))));
  const sums = chosen.map((_, slot) => together(rows, slot));
  byId("layers-table").tFoot.replaceChildren(
    make(
      "tr",
      {},
      make(
        "th",
        { scope: "row" },
        rows.length === table.rows.length ? "all (of temp the largest)" : "all found (of temp the largest)",
      ),
      make("td", { colspan: 2 }),
      ...all.filter(isNumber).map((column) => figure(sums[column.slot][column.kind], column)),
    ),
  );
  byId("layers-count").textContent = rows.length
    ? `${grouped(String(rows.length))} of ${grouped(String(table.rows.length))} layers`
    : `No layer matches "${byId("layers-find").value}"`;
  const more = byId("layers-more");
  more.hidden = shown.length === rows.length;
  more.textContent = `Show all ${grouped(String(rows.length))} layers`;
}

// Nobody can ask paper for more rows.
function tablePrinted(printed) {
  table.printed = printed;
  if (table.rows.length) tableDrawn();
}
