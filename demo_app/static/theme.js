// Wear the theme that was chosen in the chat. No module, so that it runs before
// anything is painted.

try {
  const theme = JSON.parse(localStorage.getItem("chat-theme"));
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // Private mode: nothing was kept.
}
