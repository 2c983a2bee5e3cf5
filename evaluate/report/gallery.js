"use strict";
(() => {
  const filter = document.querySelector(".filter");
  if (!filter) return;
  const buttons = [...filter.querySelectorAll("button")];
  const cards = [...document.querySelectorAll(".card")];
  const status = document.querySelector(".status");
  const shown = () => cards.filter((card) => !card.hidden);

  const show = (kind) => {
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.show === kind));
    const seen = {};
    for (const card of cards) {
      const { outcome } = card.dataset;
      seen[outcome] = (seen[outcome] ?? 0) + 1;
      card.hidden = kind === "few" ? seen[outcome] > 2 : kind !== "all" && outcome !== kind;
    }
    status.textContent = `${shown().length} of ${cards.length} images shown`;
  };
  filter.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) show(button.dataset.show);
  });

  // Arrow keys go from card to card, so that a long gallery need not be tabbed through.
  const steps = { ArrowRight: 1, ArrowLeft: -1 };
  document.querySelector(".cards").addEventListener("keydown", (event) => {
    if (!(event.key in steps) || !event.target.matches(".card")) return;
    const visible = shown();
    const next = visible[visible.indexOf(event.target) + steps[event.key]];
    if (next) {
      event.preventDefault();
      next.focus();
      next.scrollIntoView({ block: "nearest" });
    }
  });
  filter.hidden = false;
  const few = buttons.some((button) => button.dataset.show === "few") && matchMedia("(max-width: 44rem)").matches;
  show(few ? "few" : "all"); // a long gallery is not unrolled on a phone
})();
