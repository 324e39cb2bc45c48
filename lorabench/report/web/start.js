// Build all parts once and follow changes of the URL.

function drawAll() {
  read();
  for (const [, draw] of parts) draw();
  const id = location.hash.slice(1);
  if (id && !id.includes("=")) go(id);
  const shown = state.open && matrix.querySelector(`.shot[data-image="${CSS.escape(state.open)}"]`);
  if (shown) open(shown);
}

// Scroll to a section and open the <details> elements around it; the URL keeps the view settings.
function go(id) {
  const place = byId(id);
  for (let each = place; each; each = each.parentElement) if (each.tagName === "DETAILS") each.open = true;
  place?.scrollIntoView();
  place?.querySelector("summary")?.focus({preventScroll: true});
}

addEventListener("click", event => {
  const link = event.target.closest?.('a[href^="#"]');
  if (!link) return;
  event.preventDefault();
  go(link.hash.slice(1));
});
addEventListener("hashchange", drawAll);
for (const holder of document.querySelectorAll(".drawing")) {
  holder.style.aspectRatio = `${holder.dataset.width} / ${holder.dataset.height}`;
  near.observe(holder);
}
drawAll();
