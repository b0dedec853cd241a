// Colours for the pack's own sockets and their links, in the classic and in the modern design of nodes; the notes in the
// pack's templates in the editor's language; and values of a renamed node in the units of today.

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
// are dropped then, or they would come back over what a person writes there.
function translate(node) {
    const translations = node.type == "MarkdownNote" && node.properties?.kandinsky_video_note
    if (!translations) return
    const text = translations[app.extensionManager.setting.get("Comfy.Locale")]
    if (text) node.widgets_values = [text]
    delete node.properties.kandinsky_video_note
}

// The window of a curve was 0 to 100 under the node's old name and is 0 to 1. The editor replaces the node when a person
// says so, and cuts what it copies to the new range: so the values are divided before.
function rescale(node) {
    const values = node.type == "KandinskyVideoSchedule" && node.widgets_values
    if (values && Math.max(...values.slice(3)) > 1) values.splice(3, 2, values[3] / 100, values[4] / 100)
}

// Nothing else of a graph is touched.
app.registerExtension({
    name: "KandinskyVideo.Graphs",
    beforeConfigureGraph(workflow) {
        for (const graph of [workflow, ...(workflow.definitions?.subgraphs ?? [])])
            for (const node of graph.nodes ?? []) {
                translate(node)
                rescale(node)
            }
    },
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
