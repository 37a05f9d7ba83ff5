// Draws the figures of the page from the JSON beside them; switches their axes; hides runs; saves figures; fits them to
// paper.
(() => {
  "use strict";
  const PRINT_WIDTH = 660; // CSS pixels between the margins of A4 and of US Letter.
  const touch = matchMedia("(pointer: coarse)").matches; // Dragging must scroll the page there.
  const config = { responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false };
  const plots = [];

  // On a phone only powers of ten are labelled, if there are enough of them.
  const sparse = (texts) => {
    const decades = texts.map((text) => (/^10*\D?$/.test(text) || text === "0" ? text : ""));
    return decades.filter((text) => text && text !== "0").length > 1 ? decades : texts;
  };

  for (const element of document.querySelectorAll(".plot")) {
    const figure = JSON.parse(document.getElementById(element.id + "-data").textContent);
    figure.layout.dragmode = touch ? false : "zoom";
    if (figure.linearRange && element.clientWidth < 440) figure.layout.xaxis.ticktext = sparse(figure.layout.xaxis.ticktext);
    plots.push({ element, figure, linearRange: figure.linearRange, xaxis: structuredClone(figure.layout.xaxis) });
    Plotly.newPlot(element, figure.data, figure.layout, config);
  }

  const buttons = [...document.querySelectorAll("button[data-axis]")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const linear = button.dataset.axis === "linear";
      buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      for (const { element, linearRange, xaxis } of plots) {
        if (!linearRange) continue;
        Plotly.relayout(element, linear
          ? { "xaxis.type": "linear", "xaxis.tickmode": "auto", "xaxis.range": linearRange, "xaxis.tickformat": "~s" }
          : { "xaxis.type": "log", "xaxis.tickmode": "array", "xaxis.range": [...xaxis.range], "xaxis.tickformat": "" });
      }
    });
  }

  // Comparisons: every trace has its places on each of the axes, and belongs to a run.
  const placeButtons = [...document.querySelectorAll("button[data-x]")];
  for (const plot of plots) plot.first = { xaxis: plot.xaxis, x: plot.figure.data.map((trace) => trace.x) };
  for (const button of placeButtons) {
    button.addEventListener("click", () => {
      placeButtons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      for (const { element, figure, first } of plots) {
        if (!figure.places) continue;
        const place = figure.places[button.dataset.x] ?? first;
        element.data.forEach((trace, index) => { trace.x = place.x[index]; });
        Plotly.react(element, element.data, { ...element.layout, xaxis: structuredClone(place.xaxis) }, config);
      }
    });
  }
  const runButtons = [...document.querySelectorAll("button[data-run]")];
  for (const button of runButtons) {
    button.addEventListener("click", () => {
      const { run } = button.dataset;
      const shown = button.getAttribute("aria-pressed") !== "true";
      runButtons.filter((other) => other.dataset.run === run).forEach((other) => other.setAttribute("aria-pressed", String(shown)));
      for (const { element } of plots) {
        const own = element.data.flatMap((trace, index) => (trace.legendgroup === run ? [index] : []));
        if (own.length) Plotly.restyle(element, { visible: shown }, own);
      }
    });
  }

  // A saved figure is as it is shown now, on white, with its caption as a title.
  const SAVED_TITLE_HEIGHT = 34; // CSS pixels
  const save = async (button) => {
    const { save: format, figure, caption } = button.dataset;
    const element = document.getElementById(figure);
    const layout = structuredClone(element.layout);
    const height = layout.height + SAVED_TITLE_HEIGHT, width = Math.max(element.clientWidth, 360);
    layout.margin.t += SAVED_TITLE_HEIGHT;
    Object.assign(layout, { width, height, autosize: false, paper_bgcolor: "#ffffff" });
    layout.title = { text: caption.replaceAll("<", "&lt;"), x: 0.01, xanchor: "left", y: 1 - 18 / height, yanchor: "middle", font: { size: 15 } };
    const address = await Plotly.toImage({ data: element.data, layout }, { format, width, height, scale: format === "png" ? 2 : 1 });
    const content = address.slice(address.indexOf(",") + 1);
    const svg = format === "svg";
    const bytes = svg ? decodeURIComponent(content) : Uint8Array.from(atob(content), (byte) => byte.charCodeAt(0));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([bytes], { type: svg ? "image/svg+xml" : "image/png" }));
    link.download = `${caption.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "")}.${format}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  };
  for (const button of document.querySelectorAll("button[data-save]")) button.addEventListener("click", () => save(button));

  const resize = (width) => plots.forEach(({ element }) => Plotly.relayout(element, width ? { width } : { autosize: true, width: null }));
  addEventListener("beforeprint", () => resize(PRINT_WIDTH));
  addEventListener("afterprint", () => resize(null));
  document.documentElement.dataset.figuresDrawn = String(plots.length);
})();
