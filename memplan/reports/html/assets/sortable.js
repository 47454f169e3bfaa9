// Tables that are in the page and are sorted by their headings.

// A heading sorts, a second click turns the order round, and a third restores the first one.
function sortable(table) {
  const body = table.tBodies[0];
  const first = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  let order = null;
  heads.forEach((head, place) => {
    if (head.tagName !== "TH") return;
    head.setAttribute("aria-sort", "none");
    head.replaceChildren(make("button", { type: "button", on: { click: () => sortBy(place) } }, head.textContent));
  });

  function sortBy(place) {
    const numbers = heads[place].classList.contains("number");
    if (order?.place !== place) order = { place, descending: numbers };
    else order = order.descending === numbers ? { place, descending: !numbers } : null;
    const turn = order?.descending ? -1 : 1;
    const key = ({ cells }) => (numbers ? numberIn(cells[place]) : cells[place].textContent.trim());
    const compare = numbers
      ? (one, other) => one - other
      : (one, other) => one.localeCompare(other, "en", { numeric: true });
    body.append(...(order ? [...first].sort((one, other) => turn * compare(key(one), key(other)) || 0) : first));
    heads.forEach((head, at) => {
      if (head.tagName !== "TH") return;
      const own = order?.place === at;
      head.setAttribute("aria-sort", own ? (order.descending ? "descending" : "ascending") : "none");
    });
  }
}

// Where there is no number the row comes after all that have one, the largest first.
function numberIn(cell) {
  const found = cell.querySelector("data");
  return found ? Number(found.value) : -Number.MAX_VALUE;
}
