"use strict";
(() => {
  // Sorting: numbers by data-v (empty ones last), everything else as text.
  const value = (row, column) => {
    const cell = row.children[column];
    const text = cell.dataset.v ?? cell.textContent.trim();
    const number = text === "" || text === "-" ? NaN : Number(text);
    return Number.isNaN(number) ? { text, missing: text === "" || text === "-" } : { number };
  };
  const compare = (a, b) => {
    if (a.number !== undefined && b.number !== undefined) return a.number - b.number;
    if (a.number !== undefined || b.number !== undefined) return a.number !== undefined ? -1 : 1;
    return a.text.localeCompare(b.text);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector("button")?.addEventListener("click", () => {
        const first = head.classList.contains("n") ? "descending" : "ascending";
        const other = first === "ascending" ? "descending" : "ascending";
        const order = head.getAttribute("aria-sort") === first ? other : first;
        heads.forEach((cell) => cell.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const rows = [...body.rows].map((row) => [value(row, column), row]);
        rows.sort(([a], [b]) => {
          if (a.missing || b.missing) return Number(a.missing ?? 0) - Number(b.missing ?? 0);
          return sign * compare(a, b);
        });
        body.append(...rows.map(([, row]) => row));
      });
    });
  }

  for (const select of document.querySelectorAll("select[data-intervals]")) {
    const table = document.getElementById(select.dataset.intervals);
    select.addEventListener("change", () => {
      for (const ends of table.querySelectorAll(".ends")) {
        ends.hidden = ends.dataset.kind !== select.value;
      }
    });
  }

  // One system alone: pressed in a legend, the others fade in every picture.
  const pick = (name) => {
    for (const chip of document.querySelectorAll("[data-pick]")) {
      chip.setAttribute("aria-pressed", String(chip.dataset.pick === name));
    }
    for (const group of document.querySelectorAll("svg [data-s]")) {
      group.style.opacity = name === null || group.dataset.s === name ? "" : "0.12";
    }
  };
  for (const chip of document.querySelectorAll("button[data-pick]")) {
    chip.addEventListener("click", () => {
      pick(chip.getAttribute("aria-pressed") === "true" ? null : chip.dataset.pick);
    });
  }
  document.documentElement.dataset.ready = "true";
})();
