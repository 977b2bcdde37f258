// HTML that is brought up to date in place: what has not changed stays, and with it focus, scroll and opened details.
const morph = (old, fresh) => {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  if (old.tagName === "TIME") {
    // page.js has written it in the viewer's zone
    if (old.getAttribute("datetime") !== fresh.getAttribute("datetime")) old.replaceWith(fresh.cloneNode(true));
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const before = [...old.childNodes];
  const after = [...fresh.childNodes];
  after.forEach((node, place) => {
    const known = before[place];
    if (!known) old.append(node);
    else if (known.nodeName === node.nodeName && known.nodeType !== Node.COMMENT_NODE) morph(known, node);
    else known.replaceWith(node);
  });
  before.slice(after.length).forEach((node) => node.remove());
};

export default {
  template: "<div></div>",
  props: { content: String },
  mounted() {
    this.$el.innerHTML = this.shown = this.content;
  },
  updated() {
    if (this.content === this.shown) return;
    this.shown = this.content;
    const fresh = document.createElement("template");
    fresh.innerHTML = this.content;
    const box = this.$el.cloneNode(false);
    box.append(fresh.content);
    const boxes = () => [...this.$el.querySelectorAll("input[type=checkbox]")];
    const ticked = boxes().filter((one) => one.checked).map((one) => one.value);
    morph(this.$el, box);
    boxes().forEach((one) => (one.checked = ticked.includes(one.value))); // rows may have moved
  },
};
