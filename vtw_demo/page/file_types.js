// Browsers tell the type of a file by its name, and not of every name (IMG_0001.HEIC); Gradio refuses files without one.
for (const kind of ["change", "drop"]) {
  document.addEventListener(kind, (event) => {
    const chosen = kind === "drop" ? event.dataTransfer : event.target;
    const files = [...(chosen?.files ?? [])];
    if (files.every((file) => file.type)) return;
    const type = event.target.closest("#clip") ? "video" : "image";
    const typed = new DataTransfer();
    for (const file of files) {
      const name = `${type}/${file.name.split(".").pop().toLowerCase()}`;
      typed.items.add(file.type ? file : new File([file], file.name, { type: name }));
    }
    if (kind === "change") {
      chosen.files = typed.files;
    } else {
      event.stopImmediatePropagation();
      event.preventDefault();
      event.target.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: typed }));
    }
  }, true);
}
