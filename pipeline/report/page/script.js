// Before/after slider, and which section of the page is being read. Without scripts everything else still shows.
(() => {
  const slider = document.querySelector(".slider");
  const faces = new Map();
  for (const strip of document.querySelectorAll(".strip[data-face]")) {
    const images = new Map([...strip.querySelectorAll("img")].map((image) => [image.dataset.model, image.src]));
    faces.set(strip.dataset.face, images);
  }
  let face = document.querySelector(".strip[data-face]").dataset.face;

  const show = () => {
    for (const select of document.querySelectorAll("[data-side]")) {
      slider.querySelector("." + select.dataset.side).src = faces.get(face).get(select.value);
      const tag = slider.querySelector(select.dataset.side === "before" ? ".tag.left" : ".tag.right");
      tag.textContent = select.selectedOptions[0].textContent;
    }
    document.querySelector(".which code").textContent = face.slice(0, 12);
  };

  slider.querySelector("input").addEventListener("input", (event) => {
    slider.style.setProperty("--at", event.target.value + "%");
  });
  for (const select of document.querySelectorAll("[data-side]")) select.addEventListener("change", show);
  for (const image of document.querySelectorAll(".strip img")) {
    image.addEventListener("click", () => {
      face = image.closest(".strip").dataset.face;
      show();
      slider.scrollIntoView({ block: "center" });
    });
  }

  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const watch = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        for (const link of links.values()) link.classList.remove("here");
        links.get(entry.target.id).classList.add("here");
      }
    },
    { rootMargin: "-15% 0px -75% 0px" },
  );
  for (const section of document.querySelectorAll("main > section")) watch.observe(section);
})();
