"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Tables: a click on a column's title sorts by it.
for (const table of all("table.sortable")) {
  const buttons = all("thead button", table);
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const column = button.closest("th");
      const up = column.getAttribute("aria-sort") !== "ascending";
      const index = Number(button.dataset.column);
      const key = (row) => row.children[index].dataset.key ?? row.children[index].textContent.trim();
      const compare = (a, b) => (isNaN(key(a)) || isNaN(key(b))) ? key(a).localeCompare(key(b)) : key(a) - key(b);
      const rows = all("tbody tr", table).sort((a, b) => (up ? 1 : -1) * compare(a, b));
      for (const other of buttons) other.closest("th").removeAttribute("aria-sort");
      column.setAttribute("aria-sort", up ? "ascending" : "descending");
      table.tBodies[0].append(...rows);
    });
  }
}

// Confusion matrices: pointer and arrow keys show the value of a cell in words.
for (const matrix of all("table.matrix")) {
  const names = JSON.parse(matrix.dataset.names);
  const counts = JSON.parse(matrix.dataset.counts);
  const readout = document.getElementById(matrix.dataset.readout);
  const cells = all("tbody tr", matrix).map((row) => all("td", row));
  const place = (cell) => [cell.parentElement.sectionRowIndex, cell.cellIndex - 1];
  const show = (cell) => {
    const [row, column] = place(cell);
    const total = counts[row].reduce((a, b) => a + b, 0);
    const share = total ? (100 * counts[row][column] / total).toFixed(2) + " %" : "no pixels";
    const verb = row === column ? "is recognised" : "is taken for " + names[column];
    readout.textContent = `${names[row]} ${verb}: ${share} (${counts[row][column].toLocaleString("en")} pixels)`;
  };
  matrix.addEventListener("pointerover", (event) => { if (event.target.closest("td")) show(event.target.closest("td")); });
  matrix.addEventListener("focusin", (event) => {
    const cell = event.target.closest("td");
    if (!cell) return;
    for (const other of all("td[tabindex='0']", matrix)) other.tabIndex = -1;
    cell.tabIndex = 0;
    show(cell);
  });
  matrix.addEventListener("keydown", (event) => {
    const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
                  Home: [0, -1e4], End: [0, 1e4], PageUp: [-1e4, 0], PageDown: [1e4, 0]}[event.key];
    const cell = event.target.closest("td");
    if (!step || !cell) return;
    event.preventDefault();
    const [row, column] = place(cell);
    const clamp = (value) => Math.min(cells.length - 1, Math.max(0, value));
    cells[clamp(row + step[0])][clamp(column + step[1])].focus();
  });
}

// Charts: pointer and arrow keys move a cursor along the points.
for (const chart of all(".chart")) {
  const svg = chart.querySelector("svg");
  const points = JSON.parse(svg.dataset.points);  // [[x in the drawing, text], ...]
  const cursor = svg.querySelector(".cursor");
  const output = chart.querySelector("output");
  const rest = output.textContent;
  let at = points.length - 1;
  const show = (index) => {
    at = Math.min(points.length - 1, Math.max(0, index));
    cursor.setAttribute("x1", points[at][0]);
    cursor.setAttribute("x2", points[at][0]);
    cursor.style.visibility = "visible";
    output.textContent = points[at][1];
  };
  const hide = () => { cursor.style.visibility = "hidden"; output.textContent = rest; };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    let best = 0;
    points.forEach((point, k) => { if (Math.abs(point[0] - x) < Math.abs(points[best][0] - x)) best = k; });
    show(best);
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("focus", () => { if (svg.matches(":focus-visible")) show(at); });
  svg.addEventListener("keydown", (event) => {
    const far = Math.max(1, Math.round(points.length / 10));
    const step = {ArrowLeft: -1, ArrowRight: 1, PageUp: -far, PageDown: far, Home: -1e6, End: 1e6}[event.key];
    if (!step) return;
    event.preventDefault();
    show(at + step);
  });
}

// Pictures: a click opens them large; arrow keys go through them.
const dialog = document.querySelector("dialog");
if (dialog) {
  const pictures = all(".panels button");
  const image = dialog.querySelector("img");
  const caption = dialog.querySelector("p");
  let at = 0;
  const show = (index) => {
    at = (index + pictures.length) % pictures.length;
    const source = pictures[at].querySelector("img");
    image.src = source.src;
    image.alt = source.alt;
    caption.textContent = source.alt;
  };
  pictures.forEach((button, k) => button.addEventListener("click", () => { show(k); dialog.showModal(); }));
  for (const button of all("button[data-step]", dialog)) {
    button.addEventListener("click", () => show(at + Number(button.dataset.step)));
  }
  dialog.addEventListener("keydown", (event) => {
    const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -4, ArrowDown: 4}[event.key];
    if (!step) return;
    event.preventDefault();
    show(at + step);
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => pictures[at].focus());
}
