"use strict";
// Filters: a case is shown when its suite and one of its verdicts are ticked and the words are in it.
const cases = [...document.querySelectorAll(".case")];
const ticked = (name) => [...document.querySelectorAll(`input[name=${name}]:checked`)].map((box) => box.value);
function filter() {
  const suites = ticked("suite"), verdicts = ticked("verdict");
  const words = document.querySelector("#words").value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const one of cases) {
    const fits = suites.includes(one.dataset.suite)
      && one.dataset.verdicts.split(" ").some((verdict) => verdicts.includes(verdict))
      && words.every((word) => one.dataset.text.includes(word));
    one.hidden = !fits;
    shown += fits;
  }
  document.querySelector("#shown").textContent = `${shown} of ${cases.length} cases`;
}
for (const box of document.querySelectorAll(".filters input")) box.addEventListener("input", filter);
filter();
// Plans: the columns of two flavors, and the rows in which these differ.
const choices = [...document.querySelectorAll(".choose select")];
function plans() {
  const [a, b] = choices.map((choice) => Number(choice.value));
  for (const row of document.querySelectorAll("#plans tr")) {
    [...row.children].forEach((cell, i) => { cell.hidden = i > 0 && i - 1 !== a && i - 1 !== b; });
    if (row.parentElement.tagName === "TBODY") row.hidden = row.children[a + 1].textContent === row.children[b + 1].textContent;
  }
}
for (const choice of choices) choice.addEventListener("input", plans);
if (choices.length) plans();
