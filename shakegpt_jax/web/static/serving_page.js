// The page whose model is behind the server that it came from.

import { facts } from "./facts.js";
import { startPage } from "./page.js";
import { makeBackend } from "./server.js";

startPage(makeBackend(facts));
