"use strict";
// The page works without this; with it the heatmap follows the slider, and what cannot be undone asks first.
document.documentElement.classList.add("script");

const heat = document.getElementById("heat");
const finding = document.getElementById("finding");
const opacity = document.getElementById("opacity");
if (heat && finding && opacity) {
  opacity.step = "1";
  opacity.addEventListener("input", () => { heat.style.opacity = Number(opacity.value) / 100; });
  finding.addEventListener("change", () => {
    const chosen = finding.selectedOptions[0];
    heat.src = heat.dataset.base + chosen.dataset.number + ".png";
    heat.alt = "Heatmap: where " + chosen.value.replaceAll("_", " ") + " comes from";
  });
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-confirm]");
  if (button && !window.confirm(button.dataset.confirm)) event.preventDefault();
});

for (const all of document.querySelectorAll("input[data-all]")) {
  all.addEventListener("change", () => {
    for (const one of document.getElementsByName(all.dataset.all)) one.checked = all.checked;
  });
}

for (const button of document.querySelectorAll("button[data-copy]")) {
  // Browsers give the clipboard to pages of this machine and to pages over TLS only.
  if (!navigator.clipboard) button.hidden = true;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.dataset.copy);
    button.textContent = "Copied";
  });
}
