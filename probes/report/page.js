// Draws the figures of the page from the JSON beside them; switches the token axis; fits figures to paper.
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
    plots.push({ element, linearRange: figure.linearRange, xaxis: structuredClone(figure.layout.xaxis) });
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

  const resize = (width) => plots.forEach(({ element }) => Plotly.relayout(element, width ? { width } : { autosize: true, width: null }));
  addEventListener("beforeprint", () => resize(PRINT_WIDTH));
  addEventListener("afterprint", () => resize(null));
  document.documentElement.dataset.figuresDrawn = String(plots.length);
})();
