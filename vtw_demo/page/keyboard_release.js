// Gradio's slider says that it was let go of for a pointer only; this says so for keys too.
document.addEventListener("keyup", (event) => {
  const keys = ["Enter", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "PageUp", "PageDown", "Home", "End"];
  if (keys.includes(event.key) && event.target.matches("#layer input"))
    event.target.dispatchEvent(new PointerEvent("pointerup", {bubbles: true}));
});
