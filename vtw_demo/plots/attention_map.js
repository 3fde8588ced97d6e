// The slider, the Play button and the sheet of attention maps, wherever and whenever they come onto the page.
(() => {
  const STEP_MS = 700;
  const playing = new WeakMap();

  const show = (root, layer) => {
    root.querySelector(".map-layer").value = layer;
    root.querySelector("output").value = layer;
    for (const part of root.querySelectorAll("[data-at]")) part.hidden = part.dataset.at !== String(layer);
    for (const small of root.querySelectorAll(".map-small"))
      small.setAttribute("aria-current", String(small.dataset.to === String(layer)));
  };

  const pause = (root) => {
    clearInterval(playing.get(root));
    playing.delete(root);
    root.querySelector(".map-play").textContent = "Play";
  };

  const play = (root) => {
    const last = Number(root.dataset.layers) - 1;
    const slider = root.querySelector(".map-layer");
    if (Number(slider.value) >= last) show(root, 0);
    root.querySelector(".map-play").textContent = "Pause";
    const step = () => {
      if (!root.isConnected || Number(slider.value) >= last) return pause(root);
      show(root, Number(slider.value) + 1);
    };
    playing.set(root, setInterval(step, STEP_MS));
  };

  document.addEventListener("input", ({ target }) => {
    const root = target.closest(".attention-map");
    if (!root) return;
    if (target.matches(".map-layer")) {
      pause(root);
      show(root, Number(target.value));
    }
    if (target.matches(".map-scale")) root.classList.toggle("same-scale", target.checked);
  });

  document.addEventListener("click", ({ target }) => {
    const root = target.closest(".attention-map");
    if (!root) return;
    const small = target.closest(".map-small");
    if (small) {
      pause(root);
      show(root, Number(small.dataset.to));
    }
    if (target.closest(".map-play")) (playing.has(root) ? pause : play)(root);
  });
})();
