// Before/after sliders, which section is being read, and details opened for paper. Without scripts the rest still shows.
(() => {
  const faces = new Map();
  for (const strip of document.querySelectorAll(".strip[data-face]")) {
    const images = new Map([...strip.querySelectorAll("img")].map((image) => [image.dataset.model, image.src]));
    faces.set(strip.dataset.face, images);
  }
  const choice = Object.fromEntries(
    [...document.querySelectorAll("[data-choice]")].map((select) => [select.dataset.choice, select]),
  );

  const show = () => {
    const images = faces.get(choice.face.value);
    for (const slider of document.querySelectorAll(".slider")) {
      for (const side of ["before", "after"]) {
        const { value, selectedOptions } = choice[side];
        const { restorer, only } = slider.dataset; // only: the label of results that have no variants
        const source = images.get(value) ?? images.get(restorer + "/" + (only ? "base" : value));
        const name = only && !images.has(value) ? only : selectedOptions[0].textContent;
        const place = side === "before" ? "left" : "right";
        const shown = slider.querySelector("." + side);
        shown.src = source;
        shown.alt = place + ": " + name;
        slider.querySelector(".tag." + place).textContent = name;
      }
    }
  };

  for (const select of Object.values(choice)) select.addEventListener("change", show);
  for (const slider of document.querySelectorAll(".slider")) {
    slider.querySelector("input").addEventListener("input", (event) => {
      slider.style.setProperty("--at", event.target.value + "%");
    });
  }
  for (const image of document.querySelectorAll(".strip img")) {
    image.addEventListener("click", () => {
      choice.face.value = image.closest(".strip").dataset.face;
      show();
      document.querySelector(".compare").scrollIntoView({ block: "start" });
    });
  }

  const closed = new Set();
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details.printed:not([open])")) {
      details.open = true;
      closed.add(details);
    }
  });
  addEventListener("afterprint", () => {
    for (const details of closed) details.open = false;
    closed.clear();
  });

  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const watch = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        for (const link of links.values()) link.classList.remove("here");
        const here = links.get(entry.target.id);
        here.classList.add("here");
        here.parentElement.scrollLeft = here.offsetLeft - here.parentElement.offsetLeft - 40;
      }
    },
    { rootMargin: "-15% 0px -75% 0px" },
  );
  for (const section of document.querySelectorAll("main > section")) watch.observe(section);
})();
