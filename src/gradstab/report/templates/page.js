"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows].map(row => [row.cells[column].dataset.sort, row]);
    const given = rows.filter(([key]) => key !== "" && key !== "nan");
    const numbers = new Map(given.map(([key]) => [key, Number(key.replace("inf", "Infinity"))]));
    const numeric = [...numbers.values()].every(value => !Number.isNaN(value));
    const order = numeric ? (a, b) => Math.sign(numbers.get(a) - numbers.get(b)) || 0
                          : (a, b) => a.localeCompare(b, undefined, {numeric: true});
    given.sort(([a], [b]) => (down ? -1 : 1) * order(a, b));
    // What has no value stands last, whichever way the others go.
    const rest = rows.filter(([key]) => key === "" || key === "nan");
    body.append(...[...given, ...rest].map(([, row]) => row));
  }));
}
const open = () => {
  const target = document.getElementById(location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) { target.open = true; target.scrollIntoView(); }
};
addEventListener("hashchange", open);
open();
