// Which page this is.
import { coderPage } from "#coder";
import { painted } from "#element";
import { featurePage } from "#feature";
import { problem } from "#frame";
import { indexPage } from "#index";
import { textPage } from "#passage";

const PAGES = { index: indexPage, coder: coderPage, feature: featurePage, text: textPage };

async function main() {
  try {
    await PAGES[document.body.dataset.page]();
  } catch (error) {
    problem(`This page cannot be shown: ${error.message}`);
    painted();
    throw error;
  }
}

main();
