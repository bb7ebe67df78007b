// Pointing into one picture of a row enlarges all pictures of the row at that place.
for (const row of document.querySelectorAll(".panels")) {
  row.addEventListener("pointermove", (event) => {
    const frame = event.target.closest(".frame");
    row.classList.toggle("near", frame !== null);
    if (!frame) return;
    const box = frame.getBoundingClientRect();
    row.style.setProperty("--x", `${(100 * (event.clientX - box.left)) / box.width}%`);
    row.style.setProperty("--y", `${(100 * (event.clientY - box.top)) / box.height}%`);
  });
  row.addEventListener("pointerleave", () => row.classList.remove("near"));
}
