// Tables that a click, or a key, on a column's head sorts, and that a choice of label thins out.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const valueOf = (row, column) => {
    const { value } = row.cells[column].dataset;
    return value === undefined ? row.cells[column].textContent.trim() : value === "" ? NaN : Number(value);
  };
  const compare = (a, b) => {
    if (typeof a === "string") return a.localeCompare(b, undefined, { numeric: true });
    if (Number.isNaN(a) || Number.isNaN(b)) return 0;
    return a - b;
  };
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const descending = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows];
    const known = rows.filter((row) => !Number.isNaN(valueOf(row, column)));
    const unknown = rows.filter((row) => Number.isNaN(valueOf(row, column))); // last, whichever way
    known.sort((a, b) => compare(valueOf(a, column), valueOf(b, column)) * (descending ? -1 : 1));
    table.tBodies[0].append(...known, ...unknown);
  }));
}
for (const chooser of document.querySelectorAll("select[data-filters]")) {
  const table = document.getElementById(chooser.dataset.filters);
  const apply = () => {
    for (const row of table.tBodies[0].rows) row.hidden = chooser.value !== "" && row.dataset.label !== chooser.value;
  };
  chooser.addEventListener("change", apply);
  apply();
}
