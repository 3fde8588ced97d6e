// What is wrong with where things are: what covers what, what is cut off or outside the window, what is too small a target.
() => {
  const named = (element) => {
    const text = element.ariaLabel || element.textContent || element.value || "";
    return `${element.tagName}#${element.closest("[id]")?.id} “${text.trim().slice(0, 30)}”`;
  };
  // What is seen of an element: its box, as far as those around it show it; and whether one of them cuts it off where it
  // can't be scrolled into view.
  const seen = (element) => {
    let { left, top, right, bottom } = element.getBoundingClientRect();
    let isCut = false;
    for (let around = element.parentElement; around && around !== document.body; around = around.parentElement) {
      const { overflowX } = getComputedStyle(around);
      if (overflowX === "visible") continue;
      const box = around.getBoundingClientRect();
      isCut ||= overflowX === "hidden" && (left < box.left - 1 || right > box.right + 1);
      [left, top] = [Math.max(left, box.left), Math.max(top, box.top)];
      [right, bottom] = [Math.min(right, box.right), Math.min(bottom, box.bottom)];
    }
    return { element, left, top, right, bottom, isCut };
  };
  const shown = (selectors) =>
    [...document.querySelectorAll(`main :is(${selectors})`)].filter((element) => element.checkVisibility({ visibilityProperty: true }));
  const controls = shown("button, input, textarea, summary");
  const texts = shown("h1, h3, p, label > span, .info-text, .facts span, .live, .answer, .term, th, td, .main-svg");
  const parts = [...controls, ...texts].map(seen).filter(({ left, right, top, bottom }) => right - left > 1 && bottom - top > 1);
  const covered = [];
  parts.forEach((one, index) => {
    for (const other of parts.slice(index + 1)) {
      const [a, b] = [one.element, other.element];
      if (a.contains(b) || b.contains(a) || (a.parentElement === b.parentElement && a.matches(".main-svg"))) continue;
      const across = Math.min(one.right, other.right) - Math.max(one.left, other.left);
      const down = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
      if (across > 1 && down > 1) covered.push(`${named(a)} and ${named(b)}`);
    }
  });
  const small = controls.filter((element) => {
    const target = element.matches("[type=checkbox], [type=radio]") ? element.closest("label") : element;
    const { width, height } = target.getBoundingClientRect();
    return width && (width < 43.5 || height < 43.5);
  });
  return {
    width: document.documentElement.scrollWidth,
    covered,
    outside: parts.filter(({ left, right, isCut }) => isCut || left < -1 || right > innerWidth + 1).map(({ element }) => named(element)),
    small: small.map(named),
  };
}
