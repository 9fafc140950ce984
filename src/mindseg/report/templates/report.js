"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const onKeys = (node, steps, act) => node.addEventListener("keydown", (event) => {
  if (!(event.key in steps)) return;
  event.preventDefault();
  act(steps[event.key], event);
});

// Tables: a click on a column's title sorts by it.
for (const table of all("table.sortable")) {
  const heads = all("thead th", table);
  for (const head of heads) {
    head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      const text = (row) => row.cells[head.cellIndex].textContent.trim();
      const number = (row) => isNaN(parseFloat(text(row))) ? -1 : parseFloat(text(row));  // absent scores come last
      const compare = (a, b) => head.cellIndex ? number(a) - number(b) : text(a).localeCompare(text(b));
      const rows = all("tbody tr", table).sort((a, b) => (up ? 1 : -1) * compare(a, b));
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
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
    readout.textContent = `${names[row]} predicted as ${names[column]}: ${share}` +
      ` (${counts[row][column].toLocaleString("en")} pixels)`;
  };
  matrix.addEventListener("pointerover", (event) => { if (event.target.matches("tbody td")) show(event.target); });
  matrix.addEventListener("focusin", (event) => {
    for (const other of all("td[tabindex='0']", matrix)) other.tabIndex = -1;
    event.target.tabIndex = 0;
    show(event.target);
  });
  const steps = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
                 Home: [0, -1e4], End: [0, 1e4], PageUp: [-1e4, 0], PageDown: [1e4, 0]};
  onKeys(matrix, steps, ([down, right], event) => {
    const [row, column] = place(event.target);
    const clamp = (value) => Math.min(cells.length - 1, Math.max(0, value));
    cells[clamp(row + down)][clamp(column + right)].focus();
  });
}

// Charts: pointer and arrow keys move a cursor along the points.
for (const chart of all(".chart")) {
  const svg = chart.querySelector("svg");
  const points = JSON.parse(svg.dataset.points);  // [[x in the drawing, text], ...]
  const cursor = svg.querySelector(".cursor");
  const output = chart.querySelector("output");
  const summary = output.textContent;
  let at = points.length - 1;
  const show = (index) => {
    at = Math.min(points.length - 1, Math.max(0, index));
    cursor.setAttribute("x1", points[at][0]);
    cursor.setAttribute("x2", points[at][0]);
    cursor.style.visibility = "visible";
    output.textContent = points[at][1];
  };
  const hide = () => { cursor.style.visibility = "hidden"; output.textContent = summary; };
  const follow = (event) => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    const distances = points.map((point) => Math.abs(point[0] - x));
    show(distances.indexOf(Math.min(...distances)));
  };
  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  svg.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
  svg.addEventListener("blur", hide);
  svg.addEventListener("focus", () => { if (svg.matches(":focus-visible")) show(at); });
  const far = Math.max(1, Math.round(points.length / 10));
  const steps = {ArrowLeft: -1, ArrowRight: 1, PageUp: -far, PageDown: far, Home: -1e6, End: 1e6};
  onKeys(svg, steps, (step) => show(at + step));
}

// Pictures: a click opens them large; arrow keys go through them.
const dialog = document.querySelector("dialog");
if (dialog) {
  const pictures = all(".panels button");
  const image = dialog.querySelector("img");
  let at = 0;
  const show = (index) => {
    at = (index + pictures.length) % pictures.length;
    const source = pictures[at].querySelector("img");
    image.src = source.src;
    image.alt = dialog.querySelector("p").textContent = source.alt;
  };
  pictures.forEach((button, k) => button.addEventListener("click", () => { show(k); dialog.showModal(); }));
  for (const button of all("button[data-step]", dialog)) {
    button.addEventListener("click", () => show(at + Number(button.dataset.step)));
  }
  onKeys(dialog, {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -4, ArrowDown: 4}, (step) => show(at + step));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => pictures[at].focus());
}
