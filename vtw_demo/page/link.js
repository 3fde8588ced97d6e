// The address that restores what is shown; the browser's own address bar gets it too.
(model, origin, question, layer) => {
  const url = new URL(window.location.href);
  const others = [...url.searchParams].filter(([name]) => name.startsWith("__"));
  url.search = "";
  for (const [name, value] of others) url.searchParams.set(name, value);
  for (const [name, value] of Object.entries(origin || {})) url.searchParams.set(name, value);
  url.searchParams.set("question", question || "");
  url.searchParams.set("layer", String(layer));
  url.searchParams.set("model", model.model);
  window.history.replaceState(null, "", url);
  return url.href;
};
