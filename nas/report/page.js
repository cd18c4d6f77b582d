// Turns the page's pictures into charts and puts filters above its long tables; without it the page says the same.
(() => {
  "use strict";

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const finger = matchMedia("(pointer: coarse)").matches;
  let front = null;

  // What Bokeh draws within legends and colour bars takes no colour from the page's style.
  const give_ink = (plot) => {
    const ink = getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
    for (const part of plot.below) {
      if (part.type === "Legend") part.label_text_color = ink;
      if (part.type === "ColorBar") part.setv({ title_text_color: ink, major_label_text_color: ink });
    }
  };

  // A mouse draws the box to zoom into. A finger moves the page until a tool is chosen, and its touch points at a value.
  const give_tools = (view) => {
    const tools = view.model.toolbar.tools.filter((tool) => tool.type !== "HoverTool");
    const area = view.canvas_view.events_el;
    const yield_to_page = () => {
      area.style.touchAction = tools.some((tool) => tool.active) ? "none" : "pan-x pan-y";
    };
    for (const tool of tools) {
      if (tool.type === "BoxZoomTool") tool.active = !finger;
      tool.properties.active.change.connect(yield_to_page);
    }
    yield_to_page();
    area.addEventListener("click", ({ pointerType, clientX, clientY, view: window }) => {
      if (pointerType !== "touch") return;
      area.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY, view: window, isPrimary: true }));
    });
  };

  for (const data of document.querySelectorAll(".chart > script")) {
    const box = data.parentElement;
    box.classList.add("is-live");
    Bokeh.embed.embed_item(JSON.parse(data.textContent), box.querySelector("div").id).then(
      (views) => {
        const [view] = [...views].filter(({ model }) => model.type === "Figure");
        give_ink(view.model);
        give_tools(view);
        dark.addEventListener("change", () => {
          give_ink(view.model);
          view.invalidate_layout();
        });
        front ??= view.model.select_one("tried");
      },
      () => box.classList.remove("is-live"),
    );
  }

  // The candidates that a filter shows are the ones that stand out in the front.
  const mark = (ids) => {
    if (!front) return;
    const { data, selected } = front.data_source;
    selected.indices = ids ? [...data.id].flatMap((id, place) => (ids.has(id) ? [place] : [])) : [];
  };

  for (const box of document.querySelectorAll("[data-filter]")) {
    const rows = [...box.querySelectorAll("tbody tr")];
    const words = rows.map((row) => row.textContent.toLowerCase());
    const filter = document.createElement("div");
    filter.className = "filter";
    const text = Object.assign(document.createElement("input"), { type: "search", placeholder: "text" });
    text.setAttribute("aria-label", `${box.dataset.filter} with this text`);
    filter.append(text);

    const choices = [...box.querySelectorAll("th")].flatMap((head, column) => {
      if (!("choose" in head.dataset)) return [];
      const name = head.textContent;
      const values = rows.map((row) => row.cells[column].textContent);
      const select = document.createElement("select");
      select.setAttribute("aria-label", name);
      select.append(new Option(`any ${name}`, ""));
      for (const value of new Set(values)) if (value) select.append(new Option(`${name} ${value}`, value));
      filter.append(select);
      return [{ select, values }];
    });
    const count = document.createElement("output");
    filter.append(count);
    box.before(filter);

    const apply = () => {
      const asked = text.value.toLowerCase().split(/\s+/);
      const shown = rows.filter((row, index) => {
        row.hidden = !(
          asked.every((word) => words[index].includes(word)) &&
          choices.every(({ select, values }) => !select.value || values[index] === select.value)
        );
        return !row.hidden;
      });
      count.textContent = `${shown.length} of ${rows.length}`;
      if (box.dataset.filter === "candidates") {
        mark(shown.length < rows.length ? new Set(shown.map((row) => row.cells[0].textContent)) : null);
      }
    };
    filter.addEventListener("input", apply);
    apply();
  }
})();
