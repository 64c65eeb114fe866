"use strict";
/* Tables that sort by a click on a heading and filter by the controls above them; printing. */
(function () {
  for (const table of document.querySelectorAll("table[data-sortable]")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      if (heading.hasAttribute("data-plain")) return;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.textContent = heading.textContent;
      heading.replaceChildren(button);
      button.addEventListener("click", () => sort(table, headings, column));
    });
  }
  /* Paper cannot be clicked: the settings of the run are opened for printing. */
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll(".facts details:not([open])")];
    opened.forEach((details) => { details.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((details) => { details.open = false; }));

  const filtered = new Set();
  for (const control of document.querySelectorAll("[data-filters]")) {
    const table = document.getElementById(control.dataset.filters);
    filtered.add(table);
    control.addEventListener("input", () => filter(table));
  }
  filtered.forEach(filter);

  function sort(table, headings, column) {
    const numeric = headings[column].classList.contains("num");
    const before = headings[column].getAttribute("aria-sort");
    // Figures are looked at from the top, names from A.
    const descending = before ? before === "ascending" : numeric;
    headings.forEach((h) => h.removeAttribute("aria-sort"));
    headings[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
    const sign = descending ? -1 : 1;
    const rows = [...table.tBodies[0].rows].map((row) => [key(row.cells[column], numeric), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (numeric ? a - b : a.localeCompare(b));
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
  }

  function key(cell, numeric) {
    if (!numeric) return cell.textContent;
    return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  }

  function filter(table) {
    const controls = [...document.querySelectorAll(`[data-filters="${table.id}"]`)];
    const rows = [...table.tBodies[0].rows];
    let shown = 0;
    for (const row of rows) {
      row.hidden = !controls.every((control) => fits(row, control));
      shown += !row.hidden;
    }
    const count = document.getElementById(`${table.id}-count`);
    if (count) count.textContent = `${shown} of ${rows.length}`;
  }

  function fits(row, control) {
    if (control.value === "") return true;
    if (control.dataset.column !== undefined) {
      return row.cells[Number(control.dataset.column)].textContent === control.value;
    }
    return row.textContent.toLowerCase().includes(control.value.toLowerCase());
  }
})();
