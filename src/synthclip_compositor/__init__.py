"""A painter of captions out of OpenMoji glyphs: what it reads (`language`), where it puts it (`layout`),
behind what (`scenery`), and how it comes together (`painter`)."""
