// The tabs belong to groups: buttons before the tabs, and only the tabs of the group in view. Which group that is follows
// from the tab that is selected, whoever selects it.
const latest = {};
const nav = document.createElement("nav");
nav.id = "groups";
nav.setAttribute("aria-label", "Groups of tabs");
const tabs = () => [...document.querySelectorAll('#tabs > .tab-wrapper [role="tab"]')];

for (const [title, names] of Object.entries(props.groups)) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = title;
  button.onclick = () => {
    const name = latest[title] ?? names[0];
    tabs().find((tab) => tab.dataset.tabId === name).click();
  };
  nav.append(button);
}
const show = () => {
  const selected = tabs().find((tab) => tab.getAttribute("aria-selected") === "true")?.dataset.tabId;
  const found = Object.entries(props.groups).find(([, names]) => names.includes(selected));
  if (!found) return;
  const [title, names] = found;
  latest[title] = selected;
  for (const button of nav.children) button.setAttribute("aria-current", String(button.textContent === title));
  for (const tab of tabs()) tab.hidden = !names.includes(tab.dataset.tabId);
};

new MutationObserver(show).observe(document.body, { subtree: true, attributeFilter: ["aria-selected"] });
const begin = () => {
  if (!tabs().length) return requestAnimationFrame(begin);
  document.querySelector("#tabs > .tab-wrapper").prepend(nav);
  show();
};
begin();
