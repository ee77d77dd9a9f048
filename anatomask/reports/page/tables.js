"use strict";

/* Tables: a click on a title sorts by that column, another one the other way round. Cells without a value stay last. */
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const title = button.parentElement;
    const body = title.closest("table").tBodies[0];
    const numeric = title.classList.contains("number");
    const before = title.getAttribute("aria-sort");
    const ascending = before ? before !== "ascending" : !numeric;
    for (const other of title.parentElement.children) other.removeAttribute("aria-sort");
    title.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const key = (row) => row.cells[title.cellIndex].dataset.key;
    const compare = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      return (numeric ? Number(a) - Number(b) : a.localeCompare(b)) * (ascending ? 1 : -1);
    };
    [...body.rows].sort((a, b) => compare(key(a), key(b))).forEach((row) => body.append(row));
  });
}
