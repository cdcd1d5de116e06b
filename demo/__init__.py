"""The Gradio demo: one page on which words become masks. `vlseg demo` starts it; nothing heavy is imported here."""
