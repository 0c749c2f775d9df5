const view = document.body.appendChild(document.createElement("dialog"));
let images = [], at = 0;
function show(i) {
  at = (i + images.length) % images.length;
  view.replaceChildren(images[at].cloneNode(true));
}
function sort(head) {
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const text = row => row.cells[column].textContent;
  const value = row => parseFloat(text(row).replace("\u2212", "-").replaceAll(",", ""));
  const numeric = head.className === "number";
  const [filled, empty] = [[], []];
  for (const row of body.rows) (numeric && isNaN(value(row)) ? empty : filled).push(row);
  filled.sort((a, b) => (down ? -1 : 1) * (numeric ? value(a) - value(b) : text(a).localeCompare(text(b))));
  body.append(...filled, ...empty);
}
function press(target) {
  if (view.open) return target.matches("img") ? show(at + 1) : view.close();
  if (target.matches(".values th[tabindex]")) sort(target);
  if (!target.matches(".image img")) return;
  images = [...target.closest(".strip, main").querySelectorAll(".image")];
  show(images.indexOf(target.closest(".image")));
  view.showModal();
}
addEventListener("click", event => press(event.target));
addEventListener("keydown", event => {
  if (event.key === "Enter") press(event.target);
  if (view.open && event.key === "ArrowRight") show(at + 1);
  if (view.open && event.key === "ArrowLeft") show(at - 1);
});
