// A click on one of the strip's buttons says which.
element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) trigger("select", { query: button.dataset.query });
});
