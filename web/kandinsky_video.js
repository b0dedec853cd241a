// Colours for the pack's own sockets and their links, in the classic and in the modern design of nodes; and the notes in
// the pack's templates in the editor's language.

import { app } from "../../scripts/app.js"

export const COLOURS = {
    KV_TEXT_ENCODER: "#9ccc65",
    KV_MOVQ: "#ff8a65",
    KV_VIDEO_MOVQ: "#d57ce0",
    KV_FRAME_LATENT: "#8c9eff",
    KV_KEYFRAME_LATENT: "#40c4ff",
    KV_VIDEO_LATENT: "#1de9b6",
    KV_CURVES: "#ffd54f",
    KV_FRAME_CONDITIONS: "#f48fb1",
}

// The editor empties the colours of types that its palette does not name whenever it loads one; a palette that names
// ours is followed.
function keep(colours, type, colour) {
    let named = ""
    Object.defineProperty(colours, type, {
        configurable: true,
        enumerable: true,
        get: () => named || colour,
        set: (value) => { named = value },
    })
}

// A note of the templates brings its translations, and the graph is shown in the editor's language as it opens. They
// are dropped then, or they would come back over what a person writes there. Nothing else of a graph is touched.
function translateNotes(workflow) {
    const language = app.extensionManager.setting.get("Comfy.Locale")
    for (const graph of [workflow, ...(workflow.definitions?.subgraphs ?? [])])
        for (const node of graph.nodes ?? []) {
            if (node.type != "MarkdownNote" || !node.properties?.kandinsky_video_note) continue
            const text = node.properties.kandinsky_video_note[language]
            if (text) node.widgets_values = [text]
            delete node.properties.kandinsky_video_note
        }
}

app.registerExtension({
    name: "KandinskyVideo.Notes",
    beforeConfigureGraph: translateNotes,
})

app.registerExtension({
    name: "KandinskyVideo.SocketColours",
    setup() {
        const style = document.createElement("style")
        const variables = Object.entries(COLOURS).map(([type, colour]) => `--color-datatype-${type}: ${colour};`)
        style.textContent = `:root { ${variables.join(" ")} }`
        document.head.append(style)
        for (const [type, colour] of Object.entries(COLOURS)) {
            keep(app.canvas.default_connection_color_byType, type, colour)
            keep(app.canvas.constructor.link_type_colors, type, colour)
        }
        app.canvas.setDirty(true, true)
    },
})
