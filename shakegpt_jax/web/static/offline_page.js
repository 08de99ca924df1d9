// The page with the model inside.

import { facts } from "./facts.js";
import { makeBackend } from "./offline.js";
import { startPage } from "./page.js";

startPage(makeBackend(facts));
