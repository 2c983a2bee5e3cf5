"use strict";
(() => {
  const body = document.querySelector("#rows tbody");
  const rows = [...body.rows];
  const controls = [...document.querySelectorAll(".controls select, .controls input")];
  const heads = [...document.querySelectorAll("#rows thead th[data-key]")];
  const status = document.querySelector(".status");
  const order = document.querySelector("#order");
  const first = order.value;

  // The value of a column in a row: a number, a text, or null, which comes last whichever way is up.
  const value = (row, key) => {
    const text = row.dataset[key];
    if (text === undefined || text === "") return null;
    return Number.isNaN(Number(text)) ? text.toLowerCase() : Number(text);
  };
  const sort = (chosen) => {
    const [key, way] = chosen.split(":");
    const sign = way === "down" ? -1 : 1;
    rows.sort((a, b) => {
      if (!key) return a.dataset.number - b.dataset.number;
      const [one, other] = [value(a, key), value(b, key)];
      if (one === null || other === null) return (one === null) - (other === null) || a.dataset.number - b.dataset.number;
      return (one < other ? -sign : one > other ? sign : 0) || a.dataset.number - b.dataset.number;
    });
    body.append(...rows);
    for (const head of heads) {
      head.ariaSort = head.dataset.key !== key ? "none" : sign < 0 ? "descending" : "ascending";
    }
  };
  const show = () => {
    for (const row of rows) {
      row.hidden = !controls.every((one) => {
        if (one === order || !one.value) return true;
        if (one.id === "search") return row.dataset.search.includes(one.value.trim().toLowerCase());
        return row.dataset[one.id] === one.value;
      });
    }
    sort(order.value);
    const shown = rows.filter((row) => !row.hidden).length;
    status.textContent = `${shown} of ${rows.length} rows shown`;
    const chosen = controls.filter((one) => one.value && one.value !== first).map((one) => [one.id, one.value]);
    history.replaceState(null, "", chosen.length ? `#${new URLSearchParams(chosen)}` : location.pathname + location.search);
  };

  for (const [id, chosen] of new URLSearchParams(location.hash.slice(1))) {
    const one = controls.find((control) => control.id === id);
    if (one) one.value = chosen;
    if (one && one.value !== chosen) one.value = "";
  }
  for (const one of controls) one.addEventListener("input", show);
  for (const head of heads) {
    head.querySelector("button").addEventListener("click", () => {
      const { key } = head.dataset;
      const other = order.value === `${key}:down` ? `${key}:up` : `${key}:down`;
      order.value = head.dataset.words && !order.value.startsWith(`${key}:`) ? `${key}:up` : other;
      show();
    });
  }
  document.querySelector(".controls").hidden = false;
  document.body.classList.add("alive");
  show();
})();
