// What the page's keys do, where Gradio leaves them out.
(() => {
  const ARROWS = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 };
  // Each of these is one stop of the Tab key; the arrows lead through it.
  const ROVING =
    "#examples .gallery, #suggestions .gallery, .figures, [role=tablist], #groups, .token-strip, .map-sheet";
  const CHOSEN = "[aria-selected=true], [aria-pressed=true], [aria-current=true]";

  const buttons = (group) => [...group.querySelectorAll("button, .term")].filter((one) => one.offsetParent);

  const arrange = () => {
    for (const group of document.querySelectorAll(ROVING)) {
      const all = buttons(group);
      const stop =
        all.find((button) => button === document.activeElement) ||
        all.find((button) => button.matches(CHOSEN)) ||
        all.find((button) => button.getAttribute("tabindex") === "0") ||
        all[0];
      for (const button of all) button.tabIndex = button === stop ? 0 : -1;
    }
    for (const picture of document.querySelectorAll("#examples button:not([aria-label]) img")) {
      const name = picture.src.split("/").pop().split(".")[0].replaceAll("-", " ");
      picture.closest("button").ariaLabel = `Example picture: ${name}`;
    }
  };

  let isDue = false;
  const changed = () => {
    if (!isDue) requestAnimationFrame(() => ((isDue = false), arrange()));
    isDue = true;
  };
  const watched = { childList: true, subtree: true, attributeFilter: CHOSEN.match(/aria-\w+/g) };

  const skip = document.createElement("a");
  skip.className = "skip-link";
  skip.href = "#tabs";
  skip.textContent = "Skip to the plots";
  skip.addEventListener("click", (event) => {
    event.preventDefault(); // the address is that of what is shown
    const panel = [...document.querySelectorAll("#tabs [role=tabpanel]")].find((panel) => panel.offsetParent);
    panel.tabIndex = -1;
    panel.focus();
  });

  // Gradio puts this script into the page once there is a body.
  document.body.prepend(skip);
  new MutationObserver(changed).observe(document.body, watched);
  document.addEventListener("focusin", ({ target }) => {
    document.documentElement.classList.remove("escaped");
    if (target.closest(ROVING)) changed();
  });
  document.addEventListener("pointerover", () => document.documentElement.classList.remove("escaped"));

  document.addEventListener("keydown", (event) => {
    const group = event.target.closest(ROVING);
    if (group && event.key in ARROWS) {
      const all = buttons(group);
      all.at((all.indexOf(event.target) + ARROWS[event.key]) % all.length).focus();
      event.preventDefault();
    }
    if (event.key === "Escape") {
      document.documentElement.classList.add("escaped"); // no term is explained
      document.querySelector("#model-sidebar.open .toggle-button")?.click();
      const opened = document.querySelector("details[open]");
      if (opened) {
        opened.open = false;
        opened.querySelector("summary").focus();
      }
    }
  });

  // Gradio's slider says that it was let go of for a pointer only; this says so for keys too.
  document.addEventListener("keyup", (event) => {
    const keys = ["Enter", "PageUp", "PageDown", "Home", "End", ...Object.keys(ARROWS)];
    if (keys.includes(event.key) && event.target.matches("#layer input"))
      event.target.dispatchEvent(new PointerEvent("pointerup", { bubbles: true }));
  });
})();
