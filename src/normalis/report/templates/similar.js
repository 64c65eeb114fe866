/* The most similar normal images of the case that has the focus, and where it differs from them.
   window.showSimilar(i, canvas, box) fills any element with them: i is the case's position in the
   data, canvas holds its image, box is emptied first; false if there is nothing to show. */
(function () {
  const source = document.getElementById("similar-data");
  window.showSimilar = () => false;
  if (!source) return;
  const data = JSON.parse(source.textContent);
  source.textContent = "";
  const SIDE = 96;

  function square(label) {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = SIDE;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", label);
    return canvas;
  }

  function row(words, image, [place, number, distance]) {
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    caption.textContent = `${words}: no. ${number}, distance ${Number(distance.toPrecision(3))}`;
    const normal = square(`normal image ${number}`);
    const apart = square(`difference from normal image ${number}`);
    figure.append(normal, apart, caption);
    if (place < 0) { normal.remove(); apart.remove(); return figure; }
    const picture = new Image();
    picture.onload = () => {
      normal.getContext("2d").drawImage(picture, 0, 0, SIDE, SIDE);
      if (!image) { apart.remove(); return; }
      const context = apart.getContext("2d");
      context.drawImage(image, 0, 0, SIDE, SIDE);
      context.globalCompositeOperation = "difference";
      context.drawImage(picture, 0, 0, SIDE, SIDE);
    };
    picture.src = `data:image/webp;base64,${data.pictures[place]}`;
    return figure;
  }

  window.showSimilar = (i, image, box) => {
    const found = data.of[i];
    const words = ["most similar", "second", "third"];
    box.replaceChildren(...found.map((one, rank) => row(words[rank] || `${rank + 1}.`, image, one)));
    return found.length > 0;
  };

  const panel = document.getElementById("similar"), list = document.getElementById("cases");
  let shown = null;
  function follow() {
    const card = list.querySelector(".case.current") || list.querySelector(".case");
    if (!card || card.dataset.case === shown) return;
    const canvas = card.querySelector("canvas.image");
    const blank = card.classList.contains("empty");
    if (!blank && !card.dataset.painted) { setTimeout(follow, 60); return; }
    shown = card.dataset.case;
    const file = card.querySelector(".file");
    document.getElementById("similar-of").textContent = file ? file.textContent : "";
    panel.hidden = !window.showSimilar(Number(shown), blank ? null : canvas, document.getElementById("similar-box"));
  }
  new MutationObserver(follow).observe(list, { childList: true, subtree: true, attributes: true, attributeFilter: ["class", "data-painted"] });
  list.addEventListener("focusin", () => setTimeout(follow));
  follow();
})();
