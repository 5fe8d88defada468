"""The page at ``/``: plain HTML, CSS and JavaScript modules that go out as they lie here, by `server.api.page`."""
