// The address that restores the comparison that is shown; the browser's address bar and its history get it too.
(model, origin, verdict) => {
  const shown = document.createElement("template");
  shown.innerHTML = verdict || "";
  const compared = shown.content.querySelector(".verdict[data-of]");
  if (!compared) return window.location.href;
  const [, , question, layer, , detail, beside] = JSON.parse(compared.dataset.of);
  const url = new URL(window.location.href);
  const others = [...url.searchParams].filter(([name]) => name.startsWith("__") || ["tour", "stage"].includes(name));
  url.search = "";
  for (const [name, value] of others) url.searchParams.set(name, value);
  const pictured = Object.entries(origin || {});
  for (const [name, value] of pictured.length ? pictured : [["picture", "own"]]) url.searchParams.set(name, value);
  url.searchParams.set("question", question || "");
  url.searchParams.set("layer", String(layer));
  // The embedded model that answers until another is there isn't what the visitor asked for.
  if (model.model) url.searchParams.set("model", model.model);
  if (detail !== model.detail) url.searchParams.set("detail", detail);
  if (beside) url.searchParams.set("beside", beside);
  // The first comparison is what the visitor came for: back goes to where they came from.
  const isFirst = !window.hasCompared;
  window.hasCompared = true;
  if (url.href === window.location.href) return url.href;
  window.history[isFirst ? "replaceState" : "pushState"](null, "", url);
  // What was said of the comparison before is of no use any more.
  for (const old of isFirst ? [] : document.querySelectorAll("#note .problem")) old.hidden = true;
  return url.href;
};
