  document.documentElement.classList.add("script");
  const data = JSON.parse(document.getElementById("data").textContent);
  const get = (id) => document.getElementById(id);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const element = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };

  // ---- what the browser remembers: nothing where it does not let a file do so
  const recall = (key) => {
    try {
      return JSON.parse(localStorage.getItem(`filrouge ${key}`));
    } catch {
      return null;
    }
  };
  const remember = (key, value) => {
    try {
      localStorage.setItem(`filrouge ${key}`, JSON.stringify(value));
    } catch {
      // the page works without
    }
  };

  // ---- words: every label in the language of the page
  const languages = ["en", "fr"];
  let language = 0;
  const redraws = []; // what writes words by itself does so again in another language
  const say = (key, filled = {}) =>
    data.labels[key][language].replace(/\{(\w+)\}/g, (_, name) => {
      const value = filled[name];
      return value !== null && typeof value === "object" ? say(value.t) : String(value);
    });
  const spoken = (written) => (written.startsWith("[") ? say(...JSON.parse(written)) : say(written));
  function speak(wanted) {
    language = Math.max(0, languages.indexOf(wanted));
    document.documentElement.lang = languages[language];
    all("[data-t]").forEach((each) => (each.textContent = spoken(each.dataset.t)));
    for (const name of ["aria-label", "title", "alt"])
      all(`[data-t-${name}]`).forEach((each) => each.setAttribute(name, spoken(each.getAttribute(`data-t-${name}`))));
    all("[data-language]").forEach((each) =>
      each.setAttribute("aria-pressed", String(each.dataset.language === languages[language])),
    );
    redraws.forEach((redraw) => redraw());
  }
  all("[data-language]").forEach((each) =>
    each.addEventListener("click", () => {
      speak(each.dataset.language);
      remember("language", each.dataset.language);
    }),
  );
