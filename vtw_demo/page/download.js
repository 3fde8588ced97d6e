// Hands a file that the server has made to the browser, which saves it; nothing stays on the server.
watch("value", () => {
  const file = props.value;
  if (!file || !file.content) return;
  const bytes = Uint8Array.from(atob(file.content), (character) => character.charCodeAt(0));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type: file.type }));
  link.download = file.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
});
