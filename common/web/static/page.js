// What a page needs in the browser: the theme that was chosen here, times in the viewer's zone, dialogs, a copy button,
// and a way out when the session has ended.
(() => {
  const root = document.documentElement;
  const chosen = () => localStorage.getItem("wardround-theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const theme = () => chosen() || (system.matches ? "dark" : "light");
  const apply = () => {
    root.dataset.theme = theme();
    if (window.Quasar) Quasar.Dark.set(theme() === "dark");
    document.querySelectorAll("[data-theme-switch]").forEach((button) => {
      button.textContent = theme() === "dark" ? "Light theme" : "Dark theme";
    });
    document.querySelectorAll("[_echarts_instance_]").forEach((box) => box.dispatchEvent(new Event("theme")));
  };
  // A line that can't be had again may only be down, or the session has ended meanwhile: then the page goes to the door.
  const leaveWhenTurnedAway = () => {
    if (!window.socket) {
      setTimeout(leaveWhenTurnedAway, 50); // NiceGUI opens it once it has built the page
      return;
    }
    window.socket.on("connect_error", async () => {
      const answer = await fetch(location.href, { method: "HEAD", redirect: "manual", cache: "no-store" }).catch(() => null);
      if (answer && (answer.type === "opaqueredirect" || answer.status === 401)) location.reload();
    });
  };
  root.lang = "en";
  apply();
  system.addEventListener("change", apply);
  const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
  const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "long" });
  const tell = (node) => {
    const at = new Date(node.dateTime);
    if (isNaN(at) || node.dataset.told === node.dateTime) return;
    node.dataset.told = node.dateTime;
    node.textContent = day.format(at);
    node.title = exact.format(at);
  };
  const look = (node) => {
    if (node.nodeType !== 1) return;
    if (node.matches("time[datetime]")) tell(node);
    node.querySelectorAll("time[datetime]").forEach(tell);
    if (node.matches("[data-theme-switch]") || node.querySelector("[data-theme-switch]")) apply();
  };
  new MutationObserver((changes) => {
    for (const change of changes) {
      change.addedNodes.forEach(look);
      if (change.type === "attributes") tell(change.target);
    }
  }).observe(root, { childList: true, subtree: true, attributes: true, attributeFilter: ["datetime"] });
  document.addEventListener("DOMContentLoaded", () => {
    look(document.body);
    apply();
    const popup = document.getElementById("popup"); // NiceGUI's, for when the line is down
    if (!popup) return;
    popup.setAttribute("role", "status");
    const more = document.createElement("span");
    more.textContent = " What you see may be out of date. If this stays, see whether the dashboard is running.";
    popup.append(more);
    leaveWhenTurnedAway();
  });
  window.addEventListener("load", apply);
  document.addEventListener("click", (event) => {
    const target = event.target.closest("[data-theme-switch], [data-copy], [data-close]");
    if (!target) return;
    if (target.matches("[data-theme-switch]")) {
      localStorage.setItem("wardround-theme", theme() === "dark" ? "light" : "dark");
      apply();
    } else if (target.matches("[data-copy]")) {
      navigator.clipboard?.writeText(target.dataset.copy);
    } else {
      target.closest("dialog")?.close();
    }
  });
})();
