// Dims what is of another picture, detail, question or K than the controls hold, and says of which; problems go with their cause.
{
  const OF_ANY_LAYER = "#full, #live, #choose-k-reading, #choose-k, #word-by-word-reading, #word-by-word, #every-k-reading, #every-k, #answers-table";
  let controls = null;
  const older = (shown) => {
    const [picture, clip, question, layer, , detail, beside] = JSON.parse(shown.dataset.of);
    const said = [];
    if (layer !== controls[3] && !shown.closest(OF_ANY_LAYER)) said.push(`K = ${layer}`);
    if (question !== controls[2]) said.push(`“${question}”`);
    if (beside !== controls[6] && shown.closest("#beside")) said.push("another method");
    if (detail !== controls[5]) said.push(`${detail} picture detail`);
    if (picture?.path !== controls[0]?.path || clip?.path !== controls[1]?.path) said.push("another picture");
    return said.join(", ");
  };
  const mark = () => {
    if (!controls) return;
    for (const problem of document.querySelectorAll("#verdict .problem, .section-head .problem"))
      problem.dataset.of ||= JSON.stringify(controls);
    // What a tab has drawn is of what its sentence was of, until there is another one.
    for (const reading of document.querySelectorAll(".reading[data-of]:not([data-of=''])")) {
      const tab = reading.closest(".tabitem");
      for (const drawn of tab?.querySelectorAll(`#${tab.querySelector("[id$=-reading]").id.replace("-reading", "")}, #answers-table`) ?? [])
        drawn.dataset.of = reading.dataset.of;
    }
    for (const shown of document.querySelectorAll("[data-of]:not([data-of=''])")) {
      const said = older(shown);
      if (said) shown.dataset.older = `Still of ${said}`;
      else delete shown.dataset.older;
    }
  };
  window.addEventListener("controls", (event) => {
    controls = event.detail;
    mark();
  });
  new MutationObserver(mark).observe(document, { childList: true, subtree: true });
  // Back and forward: what the address says is asked again.
  window.addEventListener("popstate", () => {
    if (!window.location.hash) window.location.reload();
  });
}
