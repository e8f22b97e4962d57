"use strict";

// Sorting: by a click on a heading, or Enter on it; empty cells stay at the end.
for (const table of document.querySelectorAll("table")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const rising = heading.getAttribute("aria-sort") !== "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row, place) => ({ row, place, value: row.cells[column].dataset.sort }));
      const numeric = heading.classList.contains("number");
      rows.sort((a, b) => {
        if (a.value === undefined || b.value === undefined) {
          return (a.value === undefined) - (b.value === undefined) || a.place - b.place;
        }
        const order = numeric ? a.value - b.value : a.value.localeCompare(b.value, undefined, { numeric: true });
        return (rising ? order : -order) || a.place - b.place;
      });
      body.append(...rows.map((entry) => entry.row));
    });
  });
}

// Pointing at a run anywhere shows its curves.
const point = (event) => {
  const pointed = event.target.closest("[data-run]");
  document.body.classList.toggle("pointing", pointed !== null);
  for (const curve of document.querySelectorAll(".curve")) {
    curve.classList.toggle("pointed", pointed !== null && curve.dataset.run === pointed.dataset.run);
  }
};
document.addEventListener("pointerover", point);
document.addEventListener("focusin", point);

for (const button of document.querySelectorAll("details button")) {
  button.addEventListener("click", async () => {
    const line = button.parentElement.querySelector("pre");
    getSelection().selectAllChildren(line);
    try {
      await navigator.clipboard.writeText(line.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Selected";
    }
  });
}
